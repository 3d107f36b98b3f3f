"""The contract suites: tests that a model, aggregator, served model, pool or ledger of another package must pass.

Install the extra `testing` (pytest and hypothesis). A suite is a class whose tests run in every class that inherits it. Your
class names the tested object; the suite's docstring names the attributes or fixtures that it needs::

    # tests/test_averages.py
    from my_package import Averages, AveragesConfig
    from ray_eraser.testing import ModelContract


    class TestAverages(ModelContract):
        model = Averages(AveragesConfig())

| you bring | inherit | give |
|---|---|---|
| a base model | `ModelContract` | `model` |
| an aggregator | `AggregatorContract` | `settings` |
| a model that is never trained | `ServedContract` | `sections`: the settings that make it |
| a pool of shards | `PoolContract` | a `pool` fixture |
| a database for the ledger | `LedgerContract` | an `open_ledger` fixture |

Nothing else in the package imports this folder.
"""

from __future__ import annotations

import pytest

# Before the imports below: pytest then shows the values in a suite's failing assertion, as in a test file of your own.
pytest.register_assert_rewrite(
    *(f"{__name__}.{name}_contract" for name in ("aggregator", "ledger", "model", "pool", "served")),
)

from ray_eraser.testing.aggregator_contract import AggregatorContract  # noqa: E402 - see above
from ray_eraser.testing.ledger_contract import LedgerContract  # noqa: E402
from ray_eraser.testing.model_contract import ModelContract  # noqa: E402
from ray_eraser.testing.pool_contract import PoolContract  # noqa: E402
from ray_eraser.testing.served_contract import ServedContract  # noqa: E402

__all__ = ["AggregatorContract", "LedgerContract", "ModelContract", "PoolContract", "ServedContract"]
