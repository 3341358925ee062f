"""The published figure: quality of received images against SNR for CG, MEG-DT and E2E-MEG-DT.

Makes latents and clean images with the generator, sends them by every scheme over the channel at every SNR, and
measures what arrives: at equal SNR per symbol, as published, and at equal energy per image. Writes quality.csv, plots,
sample images and report.md into the run's folder. Examples:
python meg/test_MEG.py
python meg/test_MEG.py --channel rayleigh
python meg/test_MEG.py --schemes cg,meg_dt_snr,cg_digital,prompt --symbols 1024 --rates capacity,ldpc
python meg/test_MEG.py --preset published --generator sdxl --decoders results/meg/sdxl
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

import torch

from common.command_line import command_line
from common.parameters import LARGEST, ParameterError
from common.run_folder import RESULTS, new_folder, peak_memory, write_config, write_text
from common.tables import write_csv
from meg.experiment import Experiment
from meg.figure_parameters import BUDGETS, TestConfig
from meg.report import HEADER, plot_quality, report
from meg.sources import check_one_source


def main(config: TestConfig, given: dict[str, Any]) -> None:
    """Images, every point, and what is written of them. Raises ParameterError."""
    torch.set_num_threads(config.threads)
    check_one_source(config, given)
    config.check_given(given)
    if config.seed + config.images - 1 > LARGEST:
        raise ParameterError("seed", config.seed, f"must be at most {LARGEST} for the last of {config.images} images")
    if not Path(config.decoders).is_dir():
        raise ParameterError("decoders", config.decoders, "must be a folder of models by meg's training")
    experiment = Experiment(config)
    with new_folder(config.out, RESULTS / "meg" / "test") as folder:
        experiment.prepare()
        write_config(folder, "meg test", dataclasses.asdict(config))
        experiment.run(folder)
        measures = sorted({name for row in experiment.rows for name in row.quality})
        write_csv(folder / "quality.csv", HEADER, [values for row in experiment.rows for values in row.table()])
        for budget in BUDGETS[config.budget] if measures else ():
            plot_quality(folder / f"quality_{budget}", [r for r in experiment.rows if r.budget == budget], measures)
        words = report(experiment.rows, experiment.link, config.channel, experiment.note)
        write_text(folder / "report.md", words)
    print(words)
    print(f"quality.csv, plots, samples and report.md in {folder}; peak memory {peak_memory(experiment.device)}")


if __name__ == "__main__":
    command_line(TestConfig, main, __doc__)
