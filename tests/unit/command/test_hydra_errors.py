"""What is made of Hydra's own complaints; those about keys and options are in tests/conf."""

from hydra.errors import InstantiationException

from q2n.cli import CONFIG_DIR
from q2n.command.hydra_errors import explain
from q2n.exceptions import ConfigurationError


def test_a_setting_of_a_sweeper_is_named():
    error = InstantiationException("Error in call to target 'hydra_plugins.q2n_engines.GridSweeper':")
    error.__cause__ = ConfigurationError("hydra.sweeper.max_batch_size=0: must be at least 1")
    assert explain(error, [CONFIG_DIR], []) == str(error.__cause__)
