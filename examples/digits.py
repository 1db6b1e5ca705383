"""Two tasks on one trunk: name the digit, redraw the picture. Their losses differ in scale; see who is overlooked."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import gradsurgery as gs

images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = images.float()  # 1797 x 64, ink from 0 to 16
train, test = slice(0, 1400), slice(1400, None)

for method in (gs.Sum(), gs.MGDA(), gs.UPGrad(), gs.Chain(gs.GradNorm(alpha=0.0), gs.PCGrad())):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    name, redraw = nn.Linear(16, 10), nn.Linear(16, 64)
    parameters = [*trunk.parameters(), *name.parameters(), *redraw.parameters()]
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(parameters, lr=2e-3), method)
    for _ in range(30):
        for rows in torch.randperm(1400).split(64):
            z = trunk(images[rows])
            losses = {
                "name": functional.cross_entropy(name(z), labels[rows]),
                "redraw": functional.mse_loss(redraw(z), images[rows]),
            }
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()
    with torch.no_grad():
        z = trunk(images[test])
        wrong = (name(z).argmax(1) != labels[test]).float().mean()
        error = functional.mse_loss(redraw(z), images[test])
    label = "Chain(GradNorm, PCGrad)" if isinstance(method, gs.Chain) else type(method).__name__
    print(f"{label:24s} names wrong {wrong:6.1%}   squared error per pixel {error:5.2f}")
