//! FS.HELP, and the command reference that is made from the same specifications.

use super::FIRST;
use crate::server::command::{Argument, ArgumentKind, Call, Command, Keys, Spec};
use crate::server::config;
use feature_store_core::error::shown;
use feature_store_core::{Error, Result};
use std::ffi::CStr;
use std::fmt::Write;

/// Lists the commands.
pub(super) struct Help;

impl Command for Help {
    const SPEC: Spec = Spec {
        name: c"FS.HELP",
        summary: c"Lists the commands, or tells all of one.",
        complexity: c"O(1)",
        since: FIRST,
        flags: c"fast",
        categories: c"fs fast connection",
        arity: -1,
        keys: Keys::None,
        arguments: &[Argument::one_of(
            c"topic",
            &[
                Argument::block(c"name", &[Argument::text(c"command"), Argument::text(c"subcommand").optional()]),
                Argument::word(c"REFERENCE"),
            ],
        )
        .optional()],
        reply: "An array of lines. With `REFERENCE`, this page as one string of Markdown.",
        notes: "",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let topic = if arguments.is_empty() { None } else { Some(arguments.rest().join(&b' ')) };
        let lines: Vec<String> = match topic.as_deref() {
            None => lines(""),
            Some(word) if word.eq_ignore_ascii_case(b"REFERENCE") => {
                context.reply_text(&reference());
                return Ok(());
            }
            Some(name) => {
                let found = find(name);
                if found.is_empty() {
                    return Err(Error::syntax(format!("there is no command '{}'", shown(name))));
                }
                found.iter().flat_map(|spec| section(spec).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
            }
        };
        context.reply_array(lines.len());
        lines.iter().for_each(|line| context.reply_text(line));
        Ok(())
    }
}

/// Two lines for each command whose name begins so: its syntax and its summary.
pub(super) fn lines(prefix: &str) -> Vec<String> {
    let named = commands().filter(|spec| text(spec.name).starts_with(prefix));
    named.flat_map(|spec| [syntax(spec), format!("    {}", text(spec.summary))]).collect()
}

/// All commands that can be called; containers cannot.
fn commands() -> impl Iterator<Item = &'static Spec> {
    super::ALL.iter().filter(|entry| !entry.is_container()).map(|entry| &entry.spec)
}

/// The command of that name, or all of a container.
fn find(name: &[u8]) -> Vec<&'static Spec> {
    let prefixed = [b"FS.", name].concat();
    let is_meant = |spec: &&Spec| {
        let own = spec.name.to_bytes();
        let container = own.split(|b| *b == b' ').next().unwrap_or(own);
        [own, container].iter().any(|own| own.eq_ignore_ascii_case(name) || own.eq_ignore_ascii_case(&prefixed))
    };
    commands().filter(is_meant).collect()
}

fn text(text: &'static CStr) -> &'static str {
    text.to_str().unwrap_or_default()
}

/// One line: the name and the arguments, as manuals write them.
fn syntax(spec: &Spec) -> String {
    let mut line = text(spec.name).to_owned();
    for argument in spec.arguments {
        line.push(' ');
        line.push_str(&argument_syntax(argument));
    }
    line
}

fn argument_syntax(argument: &Argument) -> String {
    let parts = |separator| argument.parts.iter().map(argument_syntax).collect::<Vec<_>>().join(separator);
    let mut value = match argument.kind {
        ArgumentKind::Word => text(argument.name).to_owned(),
        ArgumentKind::Block => parts(" "),
        ArgumentKind::OneOf => parts(" | "),
        _ => text(argument.name).to_owned(),
    };
    let is_choice = argument.kind == ArgumentKind::OneOf && argument.parts.len() > 1;
    if is_choice && !(argument.is_optional && argument.token.is_none()) {
        value = format!("<{value}>");
    }
    // `SCHEMA` and `ADD` read alike in the syntax of arguments, but SCHEMA stands once.
    let repeats_token = argument.token.is_some() && argument.is_optional;
    let mut full = match (argument.token, argument.kind) {
        (Some(token), kind) if kind != ArgumentKind::Word => format!("{} {value}", text(token)),
        _ => value.clone(),
    };
    if argument.is_multiple {
        let again = if repeats_token { full.clone() } else { value };
        write!(full, " [{again} ...]").expect("a String takes all text");
    }
    if argument.is_optional {
        full = format!("[{full}]");
    }
    full
}

/// What the reference tells of a command.
fn section(spec: &Spec) -> String {
    let mut out = format!("## {}\n\n{}\n\n", text(spec.name), text(spec.summary));
    write!(out, "```\n{}\n```\n\n", syntax(spec)).expect("a String takes all text");
    write!(out, "**Reply**: {}\n\n", spec.reply).expect("a String takes all text");
    if !spec.notes.is_empty() {
        write!(out, "{}\n\n", spec.notes).expect("a String takes all text");
    }
    let categories: Vec<String> = text(spec.categories).split(' ').map(|c| format!("`@{c}`")).collect();
    writeln!(
        out,
        "Complexity: {} Since {}. Flags: `{}`. ACL: {}.",
        text(spec.complexity).trim_end_matches('.').to_owned() + ".",
        text(spec.since),
        text(spec.flags),
        categories.join(" ")
    )
    .expect("a String takes all text");
    out
}

/// The command reference, as Markdown.
fn reference() -> String {
    let mut out = String::from(
        "# Command reference\n\n\
         Made from the commands' own specifications (`FS.HELP REFERENCE`); `COMMAND DOCS` tells the same. Errors read \
         `CODE message` and name the view, the feature and the offending value. The store lives in database 0.\n\n",
    );
    for spec in commands() {
        out.push_str(&section(spec));
        out.push('\n');
    }
    out.push_str("## Settings\n\n`CONFIG SET name value`, or in the configuration file.\n\n");
    out.push_str("| name | default | range | what |\n|---|---|---|---|\n");
    for setting in config::ALL {
        let (default, min, max) = setting.range();
        writeln!(out, "| `{}` | {default} | {min} to {max} | {} |", setting.full_name(), setting.summary)
            .expect("a String takes all text");
    }
    out
}
