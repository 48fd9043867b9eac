"""Give a running stack the settings of this process's environment, as whoever deploys a cell does.

python -m tests.long.resettle RAY_ADDRESS CELL DIRECTORY_URL
"""

import sys

import ray

from serving import catalog, config
from serving.engine import app, specs
from serving.engine.checkpoints import store


def main() -> None:
    address, cell, directory = sys.argv[1:]
    settings = config.load()
    ray.init(address=address, log_to_driver=False)
    deployments = []
    for wanted in settings.models:
        model = catalog.find(wanted.name, settings.own_models)
        deployments.append(specs.deployment_of(model, wanted, settings, store.ensure(model, settings.home, print)))
    app.deploy(cell, directory, settings, deployments)


if __name__ == "__main__":
    main()
