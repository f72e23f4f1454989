terraform {
  # Ephemeral variables: the join token is in neither plan nor state.
  required_version = ">= 1.11"
}
