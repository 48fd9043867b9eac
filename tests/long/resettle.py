"""Give a running stack the settings of this process's environment, as whoever deploys a cell does: run with Ray's address.

Ray reads its token's place and that it has one from the environment, before it is imported.
"""

import sys

import ray

from serving import catalog, config, secret
from serving.engine import app
from serving.engine.checkpoints import store


def main() -> None:
    settings = config.load()
    ray.init(address=sys.argv[1], log_to_driver=False)
    for wanted in settings.models:
        model = catalog.find(wanted.name)
        checkpoint = store.ensure(model, settings.home, print)
        spec = app.engine_spec(model, wanted, checkpoint, settings, settings.home / secret.FILE_NAME)
        app.run_model(spec, wanted.max_replicas, wanted.adapters)


if __name__ == "__main__":
    main()
