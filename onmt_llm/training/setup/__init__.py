"""What a run is set up from: the model it starts with, its vocabularies, and its inputs.

`start` opens `train_from` or creates a new model's vocabularies; `layers` decides which layers are adapted, expanded
or quantised; `run_setup` puts both together with the state to resume, and checks them. From these, `model` builds the
model and freezes what is not trained (`word_vectors` fills embeddings, `performance` chooses how it computes), and
`inputs` opens the data and the objective.
"""
