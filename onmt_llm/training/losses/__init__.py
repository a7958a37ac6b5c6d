"""Losses: cross-entropy, its additional terms, and preference losses.

`batch_loss` runs the model on a batch and returns a `TokenLoss`: sums, never means, so that micro-batches and ranks
add up. The output layer is applied to chunks of positions, so the logits of a whole batch never exist. An `Objective`
says what is minimised.

Read `token_loss`, `objective`, `batch_loss`, `cross_entropy`; then `preference` with `log_probs`, and `terms` with
`lm_prior`.
"""
