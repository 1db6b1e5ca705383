"""Two tasks on a small BERT with the Trainer: tag each token, name the topic. Nothing is downloaded.

The picture shows in which layers the tasks conflict. Needs: pip install gradsurgery[transformers,plots]
"""

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel, BertPreTrainedModel, TrainingArguments

import gradsurgery as gs
from gradsurgery.diagnostics.pictures import save_figure
from gradsurgery.integrations.transformers import MultiObjectiveTrainer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="transformers.png", help="where the picture goes (default: transformers.png)")
options = parser.parse_args()

WORDS, TOPICS = 40, 4


class TagsAndTopic(BertPreTrainedModel):
    """Tags tokens as rare or not, and finds the topic that the sentence is about."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.tagger, self.classifier = nn.Linear(config.hidden_size, 2), nn.Linear(config.hidden_size, TOPICS)
        self.post_init()

    def forward(
        self, input_ids: Tensor, tag_labels: Tensor | None = None, topic_labels: Tensor | None = None
    ) -> dict[str, Any]:
        encoded = self.bert(input_ids)
        tags, topics = self.tagger(encoded.last_hidden_state), self.classifier(encoded.pooler_output)
        outputs = {"tags": tags, "topics": topics}
        if tag_labels is None or topic_labels is None:
            return outputs
        losses = {
            "tags": functional.cross_entropy(tags.flatten(0, 1), tag_labels.flatten()),
            "topic": functional.cross_entropy(topics, topic_labels),
        }
        return {"loss": losses, **outputs}  # changed: was the sum


def sentences(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    topics = torch.randint(TOPICS, (count,), generator=generator)
    words = torch.randint(WORDS, (count, 12), generator=generator)
    words[:, ::3] = words[:, ::3] // TOPICS * TOPICS + topics[:, None]  # every third word is of the topic
    return [
        {"input_ids": row, "tag_labels": (row > WORDS // 2).long(), "topic_labels": topic}
        for row, topic in zip(words, topics, strict=True)
    ]


torch.manual_seed(0)
model = TagsAndTopic(
    BertConfig(vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, num_train_epochs=2, per_device_train_batch_size=16, gradient_accumulation_steps=2, learning_rate=3e-3,
        bf16=True, logging_steps=8, eval_strategy="epoch", save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = MultiObjectiveTrainer(  # changed: was Trainer(
        model=model,
        args=arguments,
        train_dataset=sentences(512),
        eval_dataset=sentences(64),
        aggregator=gs.UPGrad(),  # changed
        shared=model.bert,  # so that its layers have names
    )
    monitor = gs.ConflictMonitor(trainer.create_optimizer(), every=2, scope="module")
    trainer.train()
    print(f"sum of the losses on new sentences {trainer.evaluate()['eval_loss']:.3f}")
save_figure(monitor.history.draw_layers(), options.out)
