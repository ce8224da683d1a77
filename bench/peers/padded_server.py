"""The usual way to serve a model with transformers: FastAPI, a thread, a forward. A peer.

``python padded_server.py FOLDER PORT BATCH TASK`` with BATCH 1 is one forward per request; above,
whatever waits is taken in order of arrival, up to BATCH texts, and padded to the longest.
"""

import queue
import sys
import threading
from concurrent.futures import Future
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

folder, port, batch_size, task = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
tokenizer = AutoTokenizer.from_pretrained(folder)
kind = AutoModel if task == "embeddings" else AutoModelForSequenceClassification
model = kind.from_pretrained(folder).eval()
app = FastAPI()
waiting: queue.Queue[tuple[str, Future[list[float]]]] = queue.Queue()


def compute(texts: list[str]) -> list[list[float]]:
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    if task == "classification":
        scores: list[list[float]] = output.logits.softmax(-1).tolist()
        return scores
    mask = inputs["attention_mask"][..., None].float()
    pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
    vectors: list[list[float]] = torch.nn.functional.normalize(pooled).tolist()
    return vectors


def work() -> None:
    while True:
        taken = [waiting.get()]
        while len(taken) < batch_size:
            try:
                taken.append(waiting.get_nowait())
            except queue.Empty:
                break
        for (_, future), vector in zip(taken, compute([text for text, _ in taken]), strict=True):
            future.set_result(vector)


@app.get("/readyz")
def ready() -> dict[str, str]:
    return {"phase": "ready"}


@app.post("/v1/embeddings")
@app.post("/v1/classify")
def answer(body: dict[str, Any]) -> dict[str, Any]:
    if batch_size == 1:
        row = compute([body["input"]])[0]
    else:
        future: Future[list[float]] = Future()
        waiting.put((body["input"], future))
        row = future.result()
    return {"object": "list", "data": [{"index": 0, "answer": row}]}


threading.Thread(target=work, daemon=True).start()
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
