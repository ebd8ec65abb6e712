"""One picture: the CPU of a step by the sessions that sleep, and by the age of those that run."""

from pathlib import Path

from benchmarks.scaling.findings import Findings


def draw(found: Findings, path: Path) -> None:
    """Write a PNG, or what the name's ending says."""
    import matplotlib  # a second to import: for who wants a picture

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=False)
    for panel, batch in zip(axes, sorted({one.batch for one in found.points}), strict=False):
        some = [one for one in found.points if one.batch == batch]
        for age in sorted({one.age for one in some if one.load == "awake"}):
            line = [one for one in some if one.load == "awake" and one.age == age]
            panel.plot(
                [one.asleep for one in line],
                [one.cpu_us for one in line],
                marker="o",
                label=f"awake, {age:,} steps old",
            )
        woken = [one for one in some if one.load == "any"]
        panel.plot(
            [one.asleep for one in woken],
            [one.cpu_us for one in woken],
            marker="s",
            linestyle="--",
            label="any sleeper, woken",
        )
        panel.set(
            xscale="log",
            xlabel="sessions asleep in the store",
            ylabel="CPU of a step, us",
            title=f"batch {batch}",
        )
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle("Carousel: the CPU of a step, engine and disk store, in process")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
