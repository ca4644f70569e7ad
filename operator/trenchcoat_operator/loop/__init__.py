"""When a Trenchcoat has its turn: the queue, the threads, and one pass from a look to what is done."""
