"""Two tasks on one trunk under Lightning: name the digit, redraw the picture. Do their gradients conflict?

The picture shows what weights the last method gave them. Needs: pip install gradsurgery[lightning,plots] scikit-learn
"""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import gradsurgery as gs
from gradsurgery.diagnostics.pictures import save_figure
from gradsurgery.integrations.lightning import SurgeryMonitor, scalarize

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="lightning.png", help="where the picture goes (default: lightning.png)")
options = parser.parse_args()
images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = images.float()  # 1797 x 64, ink from 0 to 16


class Digits(lightning.LightningModule):
    """One trunk, two heads."""

    def __init__(self, method: gs.Aggregator) -> None:
        super().__init__()
        self.method = method
        self.trunk = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.name = nn.Linear(16, 10)
        self.redraw = nn.Linear(16, 64)

    def losses(self, pictures: Tensor, digits: Tensor) -> dict[str, Tensor]:
        z = self.trunk(pictures)
        return {
            "name": functional.cross_entropy(self.name(z), digits),
            "redraw": functional.mse_loss(self.redraw(z), pictures),
        }

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return scalarize(self, self.losses(*batch))

    def configure_optimizers(self) -> gs.MultiObjectiveOptimizer:
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(self.parameters(), lr=2e-3), self.method)
        self.monitor = gs.ConflictMonitor(optimizer, every=2)
        return optimizer


for method in (gs.Sum(), gs.UPGrad(), gs.IMTLG()):
    lightning.seed_everything(0, verbose=False)
    model = Digits(method)
    trainer = lightning.Trainer(
        max_epochs=20,
        gradient_clip_val=10.0,
        callbacks=[SurgeryMonitor()],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True))
    with torch.no_grad():
        wrong = (model.name(model.trunk(images[1400:])).argmax(1) != labels[1400:]).float().mean()
        error = model.losses(images[1400:], labels[1400:])["redraw"]
    seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(
        f"{type(method).__name__:6s} names wrong {wrong:5.1%}   squared error per pixel {error:5.2f}   "
        f"last logged: cosine {seen['surgery/cosine/name-redraw']:5.2f}, "
        f"weights {seen['surgery/weight/name']:.2f} and {seen['surgery/weight/redraw']:.2f}"
    )
save_figure(model.monitor.history.draw_weights(), options.out)  # those of the last method
