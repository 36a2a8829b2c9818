//! The completions that clap generates do not know the names of tunnels and of interfaces. The
//! functions here let the shell find these, so that it need not start ipipou at every press of a
//! key.

use std::borrow::Cow;

use clap_complete::Shell;

use super::options::all_attributes;
use super::options::attributes::Proposals;

/// Splits the line without `COMP_WORDBREAKS`; only the part that readline replaces, `$2`, depends
/// on it. Names come from the file system and may contain anything: none is expanded (as `compgen
/// -W` would), and all are quoted. [`bash`] puts options in the place of `LOCAL_ENDS`, `DEVICES`
/// and `CONF_FILES`.
const BASH: &str = r#"
_ipipou_and_names() {
    local line=${COMP_LINE:0:COMP_POINT} words=() names=() name full
    local word=${line##*[[:blank:]]} option value
    read -ra words <<<"$line"
    [[ ! $word ]] || unset 'words[-1]'
    option=${words[-1]-} value=$word
    case $word in
    --*=*) option=${word%%=*} value=${word#*=} ;;
    -b*) option=-b value=${word#-b} ;;
    esac
    case $option,${words[1]-} in
    -b,* | LOCAL_ENDS) [[ $value && $value != *@* ]] || names=(/sys/class/net/*/) ;;
    DEVICES) names=(/sys/class/net/*/) ;;
    CONF_FILES | check,check) [[ $value == [./~]* ]] || names=(/etc/ipipou/*.conf) ;;
    --runtime-root,*) ;;
    *,show | *,reload) names=(/run/ipipou/*/control.sock) ;;
    esac
    if [[ ! ${names-} || $value == -* ]]; then
        _ipipou "$@"
        return
    fi
    compopt +o default +o bashdefault
    COMPREPLY=()
    for name in "${names[@]}"; do
        [[ -e $name ]] || continue
        name=${name%/control.sock}
        [[ $name != /etc/* ]] || name=${name%.conf}
        name=${name%/}
        printf -v name %q "${name##*/}"
        full=${word%"$value"}$name
        [[ $option != -b && $option != --fou-local ]] || full=${word%"$value"}${value%@*}@$name
        [[ $full != "$word"* ]] || COMPREPLY+=("${full#"${word%"$2"}"}")
    done
}
complete -F _ipipou_and_names -o nosort -o bashdefault -o default ipipou
"#;

const ZSH: &str = r#"
_ipipou_confs() {
    if [[ $PREFIX == [./~]* ]]; then _files; return; fi
    local names=(/etc/ipipou/*.conf(N:t:r)); compadd "$@" -a names
}
_ipipou_running() { local names=(/run/ipipou/*/control.sock(N:h:t)); compadd "$@" -a names }
_ipipou_devices() { local names=(/sys/class/net/*(N-/:t)); compadd "$@" -a names }
_ipipou_local() {
    if compset -P '*@'; then _ipipou_devices "$@"; return; fi
    local names=(/sys/class/net/*(N-/:t)); names=(@${^names}); compadd "$@" -a names
}
"#;

/// What zsh's generated completion says about options, and what replaces it.
const ZSH_ACTIONS: [(&str, &str); 6] = [
    (":LOCAL:_default'", ":LOCAL:_ipipou_local'"),
    (":DEV:_default'", ":DEV:_ipipou_devices'"),
    (":NAME:_files'", ":NAME:_ipipou_confs'"),
    (":name -- Only this tunnel:_default'", ":name -- Only this tunnel:_ipipou_running'"),
    (
        ":name -- The tunnel'\\''s file or interface, where several run:_default'",
        ":name -- The tunnel'\\''s file or interface, where several run:_ipipou_running'",
    ),
    (":name -- As in --config:_files'", ":name -- As in --config:_ipipou_confs'"),
];

const FISH: &str = r#"
function __ipipou_confs
    set -l value (commandline -ct | string replace -r '^--config=' '')
    if string match -qr '^[./~]' -- $value
        __fish_complete_path $value
        return
    end
    for place in /etc/ipipou/*.conf
        string replace -r '.*/(.*)\.conf$' '$1' -- $place
    end
end
function __ipipou_running
    for place in /run/ipipou/*/control.sock
        string replace -r '.*/(.*)/control\.sock$' '$1' -- $place
    end
end
function __ipipou_devices
    for place in /sys/class/net/*/
        string replace -r '.*/(.*)/$' '$1' -- $place
    end
end
function __ipipou_local
    set -l before (commandline -ct | string replace -r '^(--fou-local=|-b)' '')
    set before (string replace -r '@.*' '' -- $before)
    for name in (__ipipou_devices)
        echo "$before@$name"
    end
end
complete -c ipipou -n "__fish_ipipou_using_subcommand check" -f -a "(__ipipou_confs)"
complete -c ipipou -n "__fish_ipipou_using_subcommand show" -f -a "(__ipipou_running)"
complete -c ipipou -n "__fish_ipipou_using_subcommand reload" -f -a "(__ipipou_running)"
"#;

/// Returns the function by which fish finds values.
fn fish_function(proposals: Proposals) -> &'static str {
    match proposals {
        Proposals::Devices => "__ipipou_devices",
        Proposals::LocalEnds => "__ipipou_local",
        Proposals::ConfFiles => "__ipipou_confs",
    }
}

/// clap's condition is false while an option waits for its value; the other one is not.
const FISH_CONDITION: (&str, &str) = (
    "complete -c ipipou -n \"__fish_ipipou_needs_command\" ",
    "complete -c ipipou -n \"not __fish_ipipou_using_subcommand show generate reload ping monitor genkey pubkey peer\" ",
);

/// Returns a line of fish's completion, with the function that finds the option's values if there
/// is one.
fn fish_line(line: &str) -> Cow<'_, str> {
    let is_line_of = |option: &str| line.contains(&format!(" -l {option} "));
    let proposals = all_attributes().find(|option| is_line_of(option.name));
    let function = proposals.and_then(|option| option.proposals).map(fish_function);
    match (line.strip_prefix(FISH_CONDITION.0), function) {
        (Some(rest), Some(function)) => {
            let rest = rest.trim_end_matches(" -F").trim_end_matches(" -r");
            Cow::Owned(format!("{}{rest} -x -a \"({function})\"", FISH_CONDITION.1))
        }
        (None, _) | (_, None) => Cow::Borrowed(line),
    }
}

/// Returns the functions for bash, with the options that they are about.
fn bash() -> String {
    let mut text = BASH.to_owned();
    for (word, proposals) in [
        ("LOCAL_ENDS", Proposals::LocalEnds),
        ("DEVICES", Proposals::Devices),
        ("CONF_FILES", Proposals::ConfFiles),
    ] {
        let options = all_attributes().filter(|option| option.proposals == Some(proposals));
        let patterns: Vec<_> = options.map(|option| format!("--{},*", option.name)).collect();
        text = text.replace(word, &patterns.join(" | "));
    }
    text
}

/// Returns the generated completion of a shell, extended by the functions that find names.
pub fn with_names(shell: Shell, generated: &str) -> Cow<'_, str> {
    match shell {
        Shell::Bash => Cow::Owned(format!("{generated}{}", bash())),
        Shell::Fish => {
            let lines: Vec<_> = generated.lines().map(fish_line).collect();
            Cow::Owned(format!("{}\n{FISH}", lines.join("\n")))
        }
        Shell::Zsh => {
            let mut text = generated.to_owned();
            for (from, to) in ZSH_ACTIONS {
                text = text.replace(from, to);
            }
            // `#compdef` stays the first line.
            let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
            Cow::Owned(format!("{first}\n{ZSH}{rest}"))
        }
        // clap's list of shells may grow; there is a document for these three.
        _ => Cow::Borrowed(generated),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::options::Options;
    use super::*;

    fn generated(shell: Shell) -> String {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Options::command(), "ipipou", &mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn zsh_has_all_the_names() {
        let text = generated(Shell::Zsh);
        for (from, _) in ZSH_ACTIONS {
            assert!(text.contains(from), "clap writes it in another way now: {from}");
        }
        assert!(with_names(Shell::Zsh, &text).starts_with("#compdef ipipou\n"));
    }

    #[test]
    fn fish_has_all_the_names() {
        let text = generated(Shell::Fish);
        for option in all_attributes().filter(|option| option.proposals.is_some()) {
            let name = format!(" -l {} ", option.name);
            let changed =
                text.lines().filter(|line| line.contains(&name) && fish_line(line) != *line);
            assert_eq!(changed.count(), 1, "clap writes it in another way now: {name}");
        }
    }
}
