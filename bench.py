from sae_bench.cli.main import main

if __name__ == "__main__":
    main()
