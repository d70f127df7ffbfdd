"""Every part that a ranker can be made of trains, spread as co-training spreads it, and is what the artifact keeps."""

from __future__ import annotations

import pytest
import torch

from ranker.arches.interaction import InteractionConfig
from ranker.arches.taps import ProfileConfig
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.inputs import model_inputs
from ranker.rows.making import RowMaker
from ranker.schema import load_tasks
from ranker.training.losses import LossConfig
from ranker.training.optim import RankerOptimConfig
from ranker.training.sharding import process_group
from ranker.training.targets import targets
from ranker.training.trainer import RankerTrainer

NUM_STEPS = 12
CROSS = InteractionConfig(3, 20, (24, 12), cross_layers=2, cross_width=6, cross_rank=3, head_widths=(8,))
DECODER = {
    "interaction": CROSS,
    "dense_widths": (12, 8),
    "profile": ProfileConfig((2, 1), mix_taps=True, tap_tokens="attention", tap_recent=4),
}
CONFIGS = {
    "decoder": ("decoder", DECODER),
    "crossing": ("decoder", {**DECODER, "crossing_layers": 1}),
    "pooled": ("pooled", {"interaction": CROSS, "dense_widths": (12, 8)}),
}


@pytest.mark.parametrize(("tower", "options"), CONFIGS.values(), ids=CONFIGS)
def test_training_moves_every_weight_and_lowers_the_loss(
    synthetic_dataset, synthetic_folder, make_assembly, tower, options
) -> None:
    assembly = make_assembly(tower, **options)
    requests = build_requests(
        synthetic_dataset, load_tasks(synthetic_folder / "schema.toml"), "train", RequestConfig(per_profile=1)
    )
    rows = RowMaker(synthetic_dataset, assembly.features).rows(requests)
    inputs, told = model_inputs(assembly.features, rows), targets(rows, tokens_per_request=4)
    before = {name: tensor.clone() for name, tensor in assembly.model.state_dict().items()}
    optim = RankerOptimConfig(learning_rate=0.01, warmup_steps=0, decoder_warmup_steps=0)
    with process_group():
        trainer = RankerTrainer(assembly.model, optim, LossConfig(), None, NUM_STEPS, seed=0)
        totals = [trainer.total(trainer.step(step, inputs, told)) for step in range(NUM_STEPS)]
        after = trainer.ranker_state()
    assert totals[-1] < 0.95 * totals[0]
    assert after is not None
    assert after.keys() == before.keys()
    parts = ("cross.", "heads.", "dense.", "taps.", "crossing.token")
    learned = [name for name in before if any(part in name for part in parts) and "item_dense" not in name]
    assert len({part for part in parts for name in learned if part in name}) == (
        3 if tower == "pooled" else 4 + ("crossing_layers" in options)
    )
    assert [name for name in learned if torch.equal(before[name], after[name])] == []
