"""What trains: the one loop, what learns in it, and the record of what was learnt.

It lies below attacks and erasers, which both train: an attack relearns a concept or searches for
an embedding, an eraser unlearns.
"""
