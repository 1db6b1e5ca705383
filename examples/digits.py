"""Two tasks on one trunk: name the digit, redraw the picture. Which of them does the plain sum overlook?"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import gradsurgery as gs

images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = images.float()  # 1797 x 64, ink from 0 to 16

for method in (gs.Sum(), gs.UPGrad(), gs.IMTLG(), gs.MGDA()):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    name, redraw = nn.Linear(16, 10), nn.Linear(16, 64)
    model = nn.ModuleList([trunk, name, redraw])
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters(), lr=2e-3), method)
    for _ in range(30):
        for rows in torch.randperm(1400).split(64):
            z = trunk(images[rows])
            naming = functional.cross_entropy(name(z), labels[rows])
            redrawing = functional.mse_loss(redraw(z), images[rows])
            optimizer.zero_grad()
            optimizer.backward({"name": naming, "redraw": redrawing})
            optimizer.step()
    z = trunk(images[1400:])
    wrong = (name(z).argmax(1) != labels[1400:]).float().mean()
    error = functional.mse_loss(redraw(z), images[1400:])
    print(f"{type(method).__name__:7s} names wrong {wrong:6.1%}   squared error per pixel {error:.2f}")
