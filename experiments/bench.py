"""All tables under `experiments/results`, one after the other: `make bench`."""

from plywise.experiments import agent_study, speed_study


def main() -> None:
    """Runs the studies."""
    speed_study.main()
    agent_study.main()


if __name__ == "__main__":
    main()
