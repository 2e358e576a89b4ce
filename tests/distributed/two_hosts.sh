#!/bin/bash
# two_hosts.sh COMMAND...: two hosts made of this one, 10.213.77.1 and 10.213.77.2, for as long as the command runs.
# two_hosts.sh srun COMMAND...: within it, the command on both hosts, each with its own processes; the first one's exit
# status. All is made in namespaces of the user's own: nobody has to be root, and nothing stays.
set -eu -o pipefail
if [[ $1 != srun ]]; then
    exec unshare --user --map-root-user --net --mount bash -eu -c '
        mount -t tmpfs tmpfs /run  # where the names of networks stand
        ip link add hosts type bridge
        ip link set hosts up
        for i in 1 2; do
            ip netns add "$i"
            ip link add "host$i" type veth peer name eth0 netns "$i"
            ip link set "host$i" master hosts up
            ip -n "$i" addr add "10.213.77.$i/24" dev eth0
            ip -n "$i" link set eth0 up
            ip -n "$i" link set lo up
        done
        "$@"' hosts "$@"
fi
shift
mkdir -p /tmp/ray
for i in 1 2; do
    # Ray looks for its like among the processes of the host, and leaves word in /tmp/ray.
    ip netns exec "$i" unshare --pid --fork --kill-child --mount --mount-proc \
        bash -c 'mount -t tmpfs tmpfs /tmp/ray && "$@"; exit' host "$@" 2>&1 | sed "s/^/host $i: /" &
    hosts[i]=$!
done
wait "${hosts[2]}" || true
wait "${hosts[1]}"
