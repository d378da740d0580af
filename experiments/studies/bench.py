"""All tables under `experiments/results`, one after the other: `make bench`.

Those that need ResNet-20 and its images are run one by one: `technique_table`, `order_study`, `score_study`,
`recovery_study`, `fidelity_study` and `uniform_study`. So are `family_study`, which takes an hour, and
`experiments.breadth.breadth_study`, which needs the extra `breadth`.
"""

from plywise.experiments.studies import agent_study, gating_study, latency_study, speed_study, technique_table


def main() -> None:
    """Runs the studies."""
    speed_study.main()
    gating_study.main()
    latency_study.main()
    technique_table.digits()
    agent_study.main()


if __name__ == "__main__":
    main()
