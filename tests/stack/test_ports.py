"""The ports of Ray's agents are given to them."""

from __future__ import annotations

from tests.stack.running import Stack

#: Those for whose choice Ray's node waits 15 s and then aborts.
WAITED_FOR = {"metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port"}


def test_rays_node_waits_for_no_agent_to_choose_a_port(stack: Stack) -> None:
    """On a busy machine an agent takes longer than the node waits. The agents listen on the ports that the node was told."""
    parts = stack.parts()
    line = [it[2:].split("=", 1) for it in parts["Ray's raylet"].cmdline() if it.startswith("--") and "=" in it]
    options = {name.replace("-", "_"): value for name, value in line}
    given = {int(options[name]) for name in WAITED_FOR}
    assert len(given) == len(WAITED_FOR) and 0 not in given
    agents = (parts["Ray's dashboard agent"], parts["Ray's runtime environment agent"])
    listening = {it.laddr.port for agent in agents for it in agent.net_connections("inet") if it.status == "LISTEN"}
    # Ray's metrics are off here, and nothing listens where they would be.
    assert given - {int(options["metrics_export_port"])} <= listening
