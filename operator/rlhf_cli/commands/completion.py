"""rlhfctl completion: a script for a shell, which asks `rlhfctl __complete` what may come."""

from __future__ import annotations

import argparse
from typing import Final

from rlhf_cli.failures import DONE

BASH: Final = """\
# bash completion of rlhfctl. For every new shell: rlhfctl completion bash > \\
#   ~/.local/share/bash-completion/completions/rlhfctl
_rlhfctl() {
    local IFS=$'\\n'
    COMPREPLY=($(rlhfctl __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == ":files" ]]; then
        compopt -o default; COMPREPLY=()
    fi
}
complete -F _rlhfctl rlhfctl
"""
ZSH: Final = """\
#compdef rlhfctl
# zsh completion of rlhfctl. For every new shell: rlhfctl completion zsh > "${fpath[1]}/_rlhfctl"
_rlhfctl() {
    local -a found
    local line
    for line in "${(@f)$(rlhfctl __complete "${(@)words[2,$CURRENT]}" 2>/dev/null)}"; do
        [[ $line == ":files" ]] && { _files; return }
        [[ -n $line ]] && found+=("${${line//:/\\\\:}/$'\\t'/:}")
    done
    _describe rlhfctl found
}
if [[ ${funcstack[1]} == _rlhfctl ]]; then _rlhfctl "$@"; else compdef _rlhfctl rlhfctl; fi
"""
FISH: Final = """\
# fish completion of rlhfctl. For every new shell: rlhfctl completion fish > \\
#   ~/.config/fish/completions/rlhfctl.fish
function __rlhfctl_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found (rlhfctl __complete $words[2..-1] 2>/dev/null)
    if test "$found" = ":files"
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c rlhfctl -f -a '(__rlhfctl_complete)'
"""
SCRIPTS: Final = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def execute(args: argparse.Namespace) -> int:
    """Print the script."""
    print(SCRIPTS[args.shell], end="")
    return DONE
