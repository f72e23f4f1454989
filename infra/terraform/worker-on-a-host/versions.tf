terraform {
  # 1.10 has ephemeral variables: the join token is in neither plan nor state.
  required_version = ">= 1.10"
}
