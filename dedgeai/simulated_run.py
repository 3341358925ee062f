"""A run on simulated servers and a virtual clock: every number of tasks, its tables and its plots."""

from common.run_folder import new_folder, peak_memory, write_config
from dedgeai.configuration import FOLDER
from dedgeai.dispatcher import Dispatcher
from dedgeai.report import report_simulation
from dedgeai.run_options import RunOptions
from dedgeai.schedulers import make_scheduler
from dedgeai.server_profile import Profile
from dedgeai.simulation import simulate


def run_simulation(options: RunOptions, profile: Profile, out: str | None) -> None:
    """Simulate every run of the demand on servers of this profile; write tables and plots of each.

    Raises ParameterError for a scheduler or a folder `out` that cannot be used, before anything is written.
    """
    demand, name = options.demand, options.scheduler.name
    schedulers = [make_scheduler(options.scheduler, profile) for _ in demand.counts]
    with new_folder(out, FOLDER / options.folder_name) as folder:
        write_config(folder, options.title, options.stored)
        for ready, (_, stream) in zip(schedulers, demand.runs(profile), strict=True):
            dispatcher, count = Dispatcher(ready), len(stream)
            found = simulate(
                dispatcher,
                profile,
                stream,
                options.scheduler.link_rate,
                demand.seed,
                options.config.backlog == "profile",
            )
            part = folder if len(demand.counts) == 1 else folder / str(count)
            part.mkdir(exist_ok=True)
            print(f"{name}: {count} tasks on {demand.servers} simulated servers")
            report_simulation(part, stream, found, dispatcher.seconds)
    print(f"results in {folder}; peak memory {peak_memory()}")
