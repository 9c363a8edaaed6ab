#!/bin/sh
# Reads a token of the hub from standard input, and runs a command that has it in its environment. On a command line, or in a task's
# environment, which Ansible puts on one, every user of the host could read it.
# Usage: sh -c "$(cat with_token.sh)" COMMAND [ARGUMENT ...], with the token as standard input
IFS= read -r HF_TOKEN && export HF_TOKEN
exec "$0" "$@"
