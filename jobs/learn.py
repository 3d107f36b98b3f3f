from ray_eraser.cli.main import main

if __name__ == "__main__":
    main("learn")
