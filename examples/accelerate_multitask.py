"""Two tasks on one trunk with Accelerate: bfloat16, accumulation, clipping, a scheduler, a checkpoint, metrics.

The picture shows when the tasks conflict. Needs: pip install gradsurgery[accelerate,plots] scikit-learn
"""

import argparse
import tempfile

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import gradsurgery as gs
from gradsurgery.diagnostics.pictures import save_figure
from gradsurgery.integrations.accelerate import backward, surgery_metrics

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="accelerate.png", help="where the picture goes (default: accelerate.png)")
options = parser.parse_args()
images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))


class Digits(nn.Module):
    """Names a digit and redraws it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.name, self.redraw = nn.Linear(16, 10), nn.Linear(16, 64)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.trunk(images)
        return self.name(z), self.redraw(z)


torch.manual_seed(0)
accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
model = Digits()
optimizer = gs.MultiObjectiveOptimizer(torch.optim.AdamW(model.parameters(), lr=4e-3), gs.UPGrad())  # changed
monitor = gs.ConflictMonitor(optimizer, every=4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=220)
loader = DataLoader(TensorDataset(images[:1400].float(), labels[:1400]), batch_size=32, shuffle=True)
model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)

for epoch in range(10):
    for batch, digits in loader:
        with accelerator.accumulate(model):
            scores, drawings = model(batch)
            losses = {
                "name": functional.cross_entropy(scores, digits),
                "redraw": functional.mse_loss(drawings, batch),
            }
            surgery = backward(accelerator, optimizer, losses)  # changed: was accelerator.backward(sum(...))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    print(f"epoch {epoch}", {name: round(value, 3) for name, value in surgery_metrics(surgery, "").items()})

with tempfile.TemporaryDirectory() as folder:
    accelerator.save_state(folder)  # with the method's state and generator
    accelerator.load_state(folder)
with torch.no_grad():
    scores, _ = model(images[1400:].float())
print(f"names wrong {(scores.argmax(1) != labels[1400:]).float().mean():.1%}")
save_figure(monitor.history.draw_time(), options.out)
