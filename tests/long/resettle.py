"""Give a running stack the settings of this process's environment, as whoever deploys a cell does: run with Ray's address."""

import os
import sys

import ray

from serving import catalog, config, secret
from serving.engine import app
from serving.engine.checkpoints import store


def main() -> None:
    settings = config.load()
    os.environ.pop("RAY_AUTH_MODE", None)  # see app.start_local_ray
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(settings.home / app.RAY_TOKEN_FILE)
    ray.init(address=sys.argv[1], log_to_driver=False)
    for wanted in settings.models:
        model = catalog.find(wanted.name)
        checkpoint = store.ensure(model, settings.home, print)
        spec = app.engine_spec(model, wanted, checkpoint, settings, settings.home / secret.FILE_NAME)
        app.run_model(spec, wanted.max_replicas, wanted.adapters)


if __name__ == "__main__":
    main()
