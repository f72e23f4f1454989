#!/usr/bin/env bash
# The steps of aws-smoke.yml, in the order of docs/tutorials/first-deploy.md, on a sandbox account: aws_smoke.sh STEP.
# The environment file infra/environments/sandbox.toml names its images with the digest `BUILD`, which `foundation` replaces. It signs the
# release with a key of this run: no stack is synthesised with an image that no signed release names.
# Not yet run: this project has had no AWS account.
set -euo pipefail
cd "$(dirname "$0")/../../infra"

export AIRBRIDGE_ENV=sandbox
export PATH="$PWD/.venv/bin:$PWD/../.venv/bin:$PATH"
keys=${RUNNER_TEMP:-/tmp}/airbridge-keys
file=environments/sandbox.toml
cdktf=(npx --no-install cdktf)

value() { # KEY: a top-level value of the environment file
  sed -n "s/^$1 = \"\(.*\)\"/\1/p" "$file" | head -n 1
}
regions() {
  python -c "import sys, tomllib; print(*(each['name'] for each in tomllib.load(open(sys.argv[1], 'rb'))['region']))" "$file"
}
edges() {
  regions | tr ' ' '\n' | sed 's/^/edge-/'
}
home_region=$(value home_region)

foundation() {
  make -C .. images
  for image in control-plane edge-worker; do
    digest=$(python -c "import json, sys; print(json.load(open('../dist/release.json'))['release']['images'][sys.argv[1]]['digest'])" "$image")
    sed -i "s/$image@BUILD/$image@$digest/" "$file"
  done
  airbridge-ci keygen "$keys-release.key" --owner aws-smoke >> ../images/release-keys.toml
  airbridge-ci sign --key "$keys-release.key" ../dist/release.json
  cp ../dist/release.json environments/sandbox.release.json
  AIRBRIDGE_STATE=local "${cdktf[@]}" deploy --auto-approve bootstrap
  "${cdktf[@]}" deploy --auto-approve --migrate-state bootstrap
  "${cdktf[@]}" deploy --auto-approve foundation
}

fill() {
  local uri
  for image in control-plane edge-worker; do
    uri=$(aws ecr describe-repositories --region "$home_region" --repository-names "airbridge-sandbox/$image" \
      --query 'repositories[0].repositoryUri' --output text)
    aws ecr get-login-password --region "$home_region" | skopeo login --username AWS --password-stdin "${uri%%/*}"
    skopeo copy --all --preserve-digests "dir:../dist/images/$image" "docker://$uri:smoke"
  done
  airbridge init "$keys" --trust-domain "$(value trust_domain)" --root-dir "$keys-root"
  printf %s "$CLIENT_SECRET" > "$keys/ui-oidc.secret"
  python -m airbridge.infra.tools.secrets fill --environment sandbox --directory "$keys"
}

deploy() {
  "${cdktf[@]}" deploy --auto-approve control-plane
  mapfile -t stacks < <(edges)
  "${cdktf[@]}" deploy --auto-approve "${stacks[@]}"
  python -m airbridge.infra.tools.secrets publish --environment sandbox
}

# A one-off task of a definition, in the network of the gateway's service, with another command: task DEFINITION COMMAND
task() {
  local network arn code
  network=$(aws ecs describe-services --region "$home_region" --cluster airbridge-sandbox --services airbridge-sandbox-gateway \
    --query 'services[0].networkConfiguration' --output json)
  arn=$(aws ecs run-task --region "$home_region" --cluster airbridge-sandbox --launch-type FARGATE --task-definition "airbridge-sandbox-$1" \
    --network-configuration "$network" --query 'tasks[0].taskArn' --output text \
    --overrides "$(python -c "import json, sys; print(json.dumps({'containerOverrides': [{'name': sys.argv[1], 'command': ['sh', '-ec', sys.argv[2]]}]}))" "$1" "$2")")
  aws ecs wait tasks-stopped --region "$home_region" --cluster airbridge-sandbox --tasks "$arn"
  code=$(aws ecs describe-tasks --region "$home_region" --cluster airbridge-sandbox --tasks "$arn" \
    --query "tasks[0].containers[?name=='$1'].exitCode | [0]" --output text)
  aws logs tail "/airbridge/airbridge-sandbox-$1" --region "$home_region" --since 15m | tail -n 40
  [ "$code" = 0 ]
}

demo() {
  # The DAG has no data: a sandbox has no buckets of its owner's. One task in each region, then one that joins them.
  local dag certificate
  dag=$(base64 -w0 ../ci/scripts/aws_smoke_dag.py)
  certificate=$(base64 -w0 "$keys/ca.crt")
  task operator "mkdir /tmp/dags; echo $dag | base64 -d > /tmp/dags/smoke.py; echo $certificate | base64 -d > /tmp/ca.crt; umask 077
    airbridge token root --owner smoke --scope 'dags:*' --ttl 30m --json | python -c 'import json, sys; print(json.load(sys.stdin)[\"token\"])' > /tmp/token
    airbridge dags push /tmp/dags --url https://gateway.$(value trust_domain):8444 --token-file /tmp/token --ca-file /tmp/ca.crt"
  sleep 60
  task migrate "airflow dags unpause smoke; airflow dags trigger smoke --run-id smoke
    for attempt in \$(seq 90); do
      state=\$(airflow dags list-runs smoke -o json | python -c 'import json, sys; print(json.load(sys.stdin)[0][\"state\"])')
      case \$state in success) exit 0 ;; failed) exit 1 ;; esac
      sleep 10
    done
    exit 1"
}

destroy() {
  mapfile -t stacks < <(edges)
  export AIRBRIDGE_ALLOW_DESTROY=sandbox
  # What was never made cannot be destroyed: each step is tried, and the last word is the account's.
  "${cdktf[@]}" deploy --auto-approve foundation control-plane "${stacks[@]}" || true
  "${cdktf[@]}" destroy --auto-approve "${stacks[@]}" || true
  "${cdktf[@]}" destroy --auto-approve control-plane || true
  "${cdktf[@]}" destroy --auto-approve foundation
  rm -rf "$keys" "$keys-root" "$keys-release.key"
}

case ${1:-} in
  foundation | fill | deploy | demo | destroy) "$1" ;;
  *) echo "usage: aws_smoke.sh foundation|fill|deploy|demo|destroy" >&2; exit 2 ;;
esac
