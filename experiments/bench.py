"""All tables under `experiments/results`, one after the other: `make bench`.

The table of techniques on ResNet-20 needs data of its own: `python -m plywise.experiments.technique_table`.
"""

from plywise.experiments import agent_study, speed_study, technique_table


def main() -> None:
    """Runs the studies."""
    speed_study.main()
    technique_table.digits()
    agent_study.main()


if __name__ == "__main__":
    main()
