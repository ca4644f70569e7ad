"""The published form, LoLCATs: softmax over a terraced window, linear attention below it."""
