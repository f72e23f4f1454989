# The values that the module hands to the chart, and the calls that it refuses. No cluster is needed.

mock_provider "helm" {}

variables {
  image = {
    repository = "registry.example.com/edge-worker"
    digest     = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  }
  gateway_url   = "https://gateway.example.com:8443"
  ca_config_map = "airbridge-ca"
  region        = "factory-7"
  join          = { secret = "airbridge-join" }
}

run "smallest" {
  command = plan

  assert {
    condition     = yamldecode(helm_release.this.values[0]).image.digest == var.image.digest
    error_message = "the image's digest is not handed on"
  }

  assert {
    condition     = !contains(keys(yamldecode(helm_release.this.values[0])), "resources") && yamldecode(helm_release.this.values[0]).slot == {}
    error_message = "what is not given must be left to the chart's defaults"
  }

  assert {
    condition     = helm_release.this.timeout == 3900 && helm_release.this.wait
    error_message = "the timeout must hold the drain of each pod"
  }

  assert {
    condition     = output.service_account_name == "edge-airbridge-worker"
    error_message = "the service account is not named as the chart names it"
  }
}

run "long_release_name" {
  command = plan

  variables {
    release_name = "a-release-name-with-quite-a-lot-of-characters"
  }

  assert {
    condition     = output.stateful_set_name == "a-release-name-with-quite-a-lot-of-characters-airb"
    error_message = "the name is not cut as the chart cuts it"
  }
}

run "tag_in_place_of_digest" {
  command = plan

  variables {
    image = { repository = "registry.example.com/edge-worker", digest = "latest" }
  }

  expect_failures = [var.image]
}

run "no_certificate" {
  command = plan

  variables {
    ca_config_map = null
  }

  expect_failures = [var.ca_certificate]
}

run "path_in_place_of_certificate" {
  command = plan

  variables {
    ca_config_map  = null
    ca_certificate = "/etc/ssl/ca.crt"
  }

  expect_failures = [var.ca_certificate]
}

run "token_without_secret" {
  command = plan

  variables {
    join = {}
  }

  expect_failures = [var.join]
}

run "kubernetes_without_audience" {
  command = plan

  variables {
    join = { method = "kubernetes" }
  }

  expect_failures = [var.join]
}

run "gateway_with_a_path" {
  command = plan

  variables {
    gateway_url = "https://gateway.example.com/workers"
  }

  expect_failures = [var.gateway_url]
}

run "range_of_versions" {
  command = plan

  variables {
    chart         = "oci://registry.example.com/charts/airbridge-worker"
    chart_version = "~> 1"
  }

  expect_failures = [var.chart_version]
}

run "no_slots" {
  command = plan

  variables {
    slots = 0
  }

  expect_failures = [var.slots]
}
