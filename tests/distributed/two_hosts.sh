#!/bin/bash
# two_hosts.sh up|down NAME: two hosts on this one, NAME-1 and NAME-2, on a network of their own
# two_hosts.sh run NAME COMMAND...: the command on both, each with its own processes; the first host's exit status
set -eu -o pipefail
case $1 in
up)
    ip link add "$2" type bridge
    ip link set "$2" up
    for i in 1 2; do
        ip netns add "$2-$i"
        ip link add "$2-$i" type veth peer name eth0 netns "$2-$i"
        ip link set "$2-$i" master "$2" up
        ip -n "$2-$i" addr add "10.213.77.$i/24" dev eth0
        ip -n "$2-$i" link set eth0 up
        ip -n "$2-$i" link set lo up
    done
    ;;
down)
    for i in 1 2; do ip netns del "$2-$i" || true; done
    ip link del "$2" || true
    ;;
run)
    name=$2
    shift 2
    mkdir -p /tmp/ray
    for i in 1 2; do
        # Ray looks for its like among the processes of the host, and leaves word in /tmp/ray.
        ip netns exec "$name-$i" unshare --pid --fork --kill-child --mount --mount-proc \
            bash -c 'mount -t tmpfs tmpfs /tmp/ray && "$@"; exit' host "$@" 2>&1 | sed "s/^/host $i: /" &
        hosts[i]=$!
    done
    wait "${hosts[2]}" || true
    wait "${hosts[1]}"
    ;;
esac
