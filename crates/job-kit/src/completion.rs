//! Completion of command lines: scripts for shells (`--completions bash`), and what they ask the program for (`--complete LINE`).

use std::{collections::BTreeSet, ffi::OsString, sync::OnceLock};

use clap::{Args, Command, Parser};

use serde::{Serialize, de::DeserializeOwned};

use crate::config::{ConfigArgs, Rules, compose, group_choices};

/// A shell that completes command lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// GNU bash, 4 or later.
    Bash,
    /// Z shell.
    Zsh,
    /// fish, 3 or later.
    Fish,
}

/// The command line of this program, once [`main`](crate::main) has begun.
static COMMAND: OnceLock<fn() -> Command> = OnceLock::new();

pub(crate) fn is_of<C: Parser>() {
    let _ = COMMAND.set(C::command);
}

const BASH: &str = r#"_FUNCTION() {
    # bash cuts words at `=`: what is completed is the whole of what was typed since the last space.
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n'
    local word="${line##*[[:space:]]}"
    COMPREPLY=( $("$1" --complete "$line" 2>/dev/null) )
    if [[ "$word" == *=* ]]; then
        COMPREPLY=( "${COMPREPLY[@]#"${word%=*}="}" )
    fi
    if [[ "${COMPREPLY[*]}" == *= ]]; then
        compopt -o nospace
    fi
}
complete -o default -F _FUNCTION PROGRAM
"#;

const ZSH: &str = r#"#compdef PROGRAM
_FUNCTION() {
    local -a found open
    found=( ${(f)"$($words[1] --complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)"} )
    open=( ${(M)found:#*=} )
    found=( ${found:#*=} )
    compadd -Q -S '' -a open
    compadd -Q -a found
    (( $#open + $#found )) || _files
}
compdef _FUNCTION PROGRAM
"#;

const FISH: &str = r#"complete -c PROGRAM -f -a '(PROGRAM --complete (commandline -cp | string collect))'
"#;

/// The script that makes a shell complete the command lines of a program.
pub fn script(shell: Shell, program: &str) -> String {
    let script = match shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
    };
    let function = format!("complete_{}", program.replace('-', "_"));
    script
        .replace("FUNCTION", &function)
        .replace("PROGRAM", program)
}

/// How the last word of a command line of `job` could go on; whole words, one a line.
pub fn candidates<T: DeserializeOwned + Serialize + Rules>(job: &str, line: &str) -> String {
    let command = COMMAND.get().map_or_else(Command::default, |of| of());
    let found = of_line::<T>(job, &command, line);
    found.into_iter().map(|word| word + "\n").collect()
}

fn of_line<T: DeserializeOwned + Serialize + Rules>(
    job: &str,
    command: &Command,
    line: &str,
) -> BTreeSet<String> {
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    let (word, before) = match (line.ends_with(char::is_whitespace), words.split_last()) {
        (false, Some((word, before))) => (*word, before),
        _ => ("", &words[..]),
    };
    if word.starts_with('-') {
        return flags(command, word);
    }
    // The value of a flag: a file, or what only the user knows; or one of a few.
    if let Some(flag) = before.last().and_then(|word| word.strip_prefix("--"))
        && let Some(arg) = command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(flag))
        && arg.get_action().takes_values()
    {
        let values = arg.get_possible_values();
        let values = values.iter().map(|value| value.get_name().to_owned());
        return values.filter(|value| value.starts_with(word)).collect();
    }
    overrides::<T>(job, word, before)
}

fn flags(command: &Command, word: &str) -> BTreeSet<String> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let longs = shown.filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
    let longs = longs.chain(["--help".to_owned(), "--version".to_owned()]);
    longs.filter(|flag| flag.starts_with(word)).collect()
}

/// Keys of the configuration, as it is with what was typed before, groups among them, and the choices of a group.
fn overrides<T: DeserializeOwned + Serialize + Rules>(
    job: &str,
    word: &str,
    before: &[&str],
) -> BTreeSet<String> {
    let args = config_args(before);
    // What was typed may not be whole yet, or wrong.
    let plain = ConfigArgs {
        overrides: vec![],
        ..args.clone()
    };
    let Some(composed) = [&args, &plain]
        .into_iter()
        .find_map(|args| compose::<T>(job, args).ok())
    else {
        return BTreeSet::new();
    };
    let values = composed.value();
    let bare = word.trim_start_matches(['+', '~']);
    let mark = &word[..word.len() - bare.len()];
    let mut found = BTreeSet::new();
    match bare.split_once('=') {
        Some((key, _)) => {
            let choices = group_choices(&args.config_dir, key);
            let at = values.pointer(&format!("/{}", key.replace('.', "/")));
            let switches = at
                .filter(|value| value.is_boolean())
                .map(|_| ["true", "false"]);
            let values = choices
                .into_iter()
                .chain(switches.into_iter().flatten().map(str::to_owned));
            found.extend(values.map(|value| format!("{key}={value}")));
        }
        None => keys("", values, &mut found),
    }
    let found = found.into_iter().filter(|text| text.starts_with(bare));
    // `~key` takes a key away and has no value.
    let found = found.map(|text| match mark {
        "~" => format!("~{}", text.trim_end_matches('=')),
        _ => format!("{mark}{text}"),
    });
    found.collect()
}

fn keys(above: &str, value: &serde_json::Value, found: &mut BTreeSet<String>) {
    let serde_json::Value::Object(pairs) = value else {
        return;
    };
    for (key, value) in pairs {
        let key = match above {
            "" => key.clone(),
            above => format!("{above}.{key}"),
        };
        keys(&key, value, found);
        found.insert(format!("{key}="));
    }
}

/// What was typed of the configuration.
fn config_args(words: &[&str]) -> ConfigArgs {
    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        config: ConfigArgs,
    }
    let known = Typed::augment_args(Command::new("")).ignore_errors(true);
    let words = std::iter::once("").chain(words.iter().copied());
    let typed = known.try_get_matches_from(words.map(OsString::from)).ok();
    let typed =
        typed.and_then(|typed| <Typed as clap::FromArgMatches>::from_arg_matches(&typed).ok());
    typed.map_or_else(ConfigArgs::default, |typed| typed.config)
}
