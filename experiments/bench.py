"""All tables under `experiments/results`, one after the other: `make bench`.

Two need data of their own: the table of techniques on ResNet-20, `python -m plywise.experiments.technique_table`, and
the study of the order of techniques, `python -m plywise.experiments.order_study`.
"""

from plywise.experiments import agent_study, gating_study, speed_study, technique_table


def main() -> None:
    """Runs the studies."""
    speed_study.main()
    gating_study.main()
    technique_table.digits()
    agent_study.main()


if __name__ == "__main__":
    main()
