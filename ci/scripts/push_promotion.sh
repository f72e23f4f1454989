#!/usr/bin/env bash
# Push a promotion's commit to main, on top of what main has by now: a run waits for its approval for hours, and main moves meanwhile.
# The job goes on with what was pushed, so the tools are those of its lock, and parity holds in it. TOKEN may push.
set -euo pipefail

# A function, read as a whole: the rebase may replace this file.
push() {
  local remote="https://x-access-token:$TOKEN@github.com/$GITHUB_REPOSITORY.git" attempt
  for attempt in 1 2 3 4 5; do
    git fetch --quiet "$remote" main
    if ! git rebase --quiet FETCH_HEAD; then
      git rebase --abort
      echo "main has changed the environment that this promotion changes: start the promotion again" >&2
      return 1
    fi
    make setup infra-install
    .tools/bin/uv run --no-sync airbridge-ci parity
    if git push --quiet "$remote" HEAD:main; then return 0; fi
    echo "attempt $attempt of 5: main has moved, or the push was refused" >&2
    sleep "$attempt"
  done
  return 1
}

push
exit
