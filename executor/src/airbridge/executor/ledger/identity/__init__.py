"""Tables of identity: tokens, revocations, used join proofs."""
