//! FS.SERVICE: SET, GET, DEL, LIST, HELP.

use super::register::refuse_if_a_rewrite_would_lose_it;
use super::{help, FIRST, SERVICE};
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::serving::planned;
use crate::server::state::STATE;
use feature_store_core::service::{Reference, Service};
use feature_store_core::Result;
use std::sync::Arc;

/// The container.
pub(super) const CONTAINER: Spec = Spec {
    name: c"FS.SERVICE",
    summary: c"A container of commands for feature services.",
    complexity: c"Depends on the subcommand.",
    since: FIRST,
    flags: c"",
    categories: c"fs",
    arity: -2,
    keys: Keys::None,
    arguments: &[],
    reply: "",
    notes: "",
};

/// Sets a service.
pub(super) struct Set;

impl Command for Set {
    const SPEC: Spec = Spec {
        name: c"FS.SERVICE SET",
        summary: c"Sets a feature service: the features that a model reads in one command.",
        complexity: c"O(F), F the number of features.",
        since: FIRST,
        flags: c"write deny-oom admin",
        categories: c"fs write slow admin dangerous",
        arity: -6,
        keys: Keys::None,
        arguments: &[
            SERVICE,
            Argument::block(
                c"ranking",
                &[
                    Argument::text(c"entity").after(c"CONTEXT"),
                    Argument::text(c"entity").after(c"CANDIDATE"),
                    Argument::text(c"entity").after(c"PAIR").optional(),
                ],
            )
            .optional(),
            Argument::one_of(
                c"format",
                &[Argument::word(c"MAP"), Argument::word(c"ARRAY"), Argument::word(c"TENSOR"), Argument::word(c"JSON")],
            )
            .after(c"FORMAT")
            .optional(),
            Argument::word(c"WITHSTATUS").optional(),
            Argument::block(c"features", &[Argument::integer(c"count"), Argument::text(c"view:feature").multiple()])
                .after(c"FEATURES"),
        ],
        reply: "`OK`. A service of that name is replaced.",
        notes:
            "A feature is `view:feature` or `view@version:feature`; without a version the newest one at this moment \
                is meant for good, so that a later version of the view changes no model's input. Without `CONTEXT` all \
                views are of one entity and `FS.SERVE` reads the service. With it each view is of the entity of the \
                context (a user), the candidate (an item) or the pair (ids `user:item`), and `FS.RANK` reads it. \
                `FORMAT` (MAP) and `WITHSTATUS` say how it answers: `FS.SERVE` tells.\n\nEverything is checked now: \
                `NOVIEW`, `NOFEATURE`, and `SCHEMA` for a tensor's feature without a number or a view of another \
                entity. When a view is altered the service follows. When what it reads is dropped or becomes another \
                type, reading it is an error that says so, until the service is set again or the view is back.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let mut arguments = call.arguments();
        let name = arguments.next("service")?;
        let service = Service::parse(name, &mut arguments, &STATE.borrow(call.context).registry)?;
        refuse_if_a_rewrite_would_lose_it(call.context)?;
        let is_new = {
            let mut state = STATE.borrow_mut(call.context);
            let is_new = state.registry.service(name).map_or(true, |known| **known != service);
            if is_new {
                state.registry.set_service(service);
                state.forget_plans();
            }
            is_new
        };
        if is_new {
            call.context.replicate_verbatim();
        }
        call.context.reply_ok();
        Ok(())
    }
}

/// Tells a service.
pub(super) struct Get;

impl Command for Get {
    const SPEC: Spec = Spec {
        name: c"FS.SERVICE GET",
        summary: c"Tells a feature service and the columns of its answer.",
        complexity: c"O(C), C the number of columns.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: 3,
        keys: Keys::None,
        arguments: &[SERVICE],
        reply: "A map: `service`, `context`, `candidate`, `pair` (entities, nil where it has none), `format`, \
                `withstatus`, `features` (an array of `view:feature` as they were written), `versions` (an array of \
                view and version, as they are read), `columns` (the names of the answer's columns in their order: of a \
                tensor one for each number, `view:feature[i]` for those of a VECTOR), `problem` (nil, or why it cannot \
                be read now; `columns` is empty then).",
        notes: "`NOSERVICE` when there is none of that name.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let name = arguments.next("service")?;
        let service = Arc::clone(STATE.borrow(context).registry.service(name)?);
        let planned = planned(context, name);
        let text = |name: &str, value: Option<&str>| {
            context.reply_text(name);
            context.reply_optional_text(value);
        };
        let texts = |name: &str, values: &[String]| {
            context.reply_text(name);
            context.reply_array(values.len());
            values.iter().for_each(|value| context.reply_text(value));
        };
        let ranking = service.ranking.as_ref();
        context.reply_map(10);
        text("service", Some(&service.name));
        text("context", ranking.map(|r| r.context.as_str()));
        text("candidate", ranking.map(|r| r.candidate.as_str()));
        text("pair", ranking.and_then(|r| r.pair.as_deref()));
        text("format", Some(&service.format.name().to_ascii_lowercase()));
        context.reply_text("withstatus");
        context.reply_bool(service.with_status);
        texts("features", &service.references.iter().map(Reference::to_string).collect::<Vec<_>>());
        let versions = service.versions();
        context.reply_text("versions");
        context.reply_array(versions.len());
        for (view, version) in versions {
            context.reply_array(2);
            context.reply_text(view);
            context.reply_integer(i64::from(version));
        }
        texts("columns", &planned.as_ref().map_or_else(|_| Vec::new(), |planned| service.columns(&planned.plan)));
        text("problem", planned.as_ref().err().map(ToString::to_string).as_deref());
        Ok(())
    }
}

/// Deletes a service.
pub(super) struct Del;

impl Command for Del {
    const SPEC: Spec = Spec {
        name: c"FS.SERVICE DEL",
        summary: c"Deletes a feature service.",
        complexity: c"O(1)",
        since: FIRST,
        flags: c"write admin",
        categories: c"fs write slow admin dangerous",
        arity: 3,
        keys: Keys::None,
        arguments: &[SERVICE],
        reply: "`OK`.",
        notes: "`NOSERVICE` when there is none of that name. The views stay.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let mut arguments = call.arguments();
        {
            let mut state = STATE.borrow_mut(call.context);
            state.registry.delete_service(arguments.next("service")?)?;
            state.forget_plans();
        }
        call.context.replicate_verbatim();
        call.context.reply_ok();
        Ok(())
    }
}

/// Lists the services.
pub(super) struct List;

impl Command for List {
    const SPEC: Spec = Spec {
        name: c"FS.SERVICE LIST",
        summary: c"Lists the feature services.",
        complexity: c"O(S), S the number of services.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: 2,
        keys: Keys::None,
        arguments: &[],
        reply: "An array of names, sorted.",
        notes: "",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let services: Vec<Arc<Service>> = STATE.borrow(context).registry.services().cloned().collect();
        context.reply_array(services.len());
        services.iter().for_each(|service| context.reply_text(&service.name));
        Ok(())
    }
}

/// Lists the subcommands.
pub(super) struct Help;

impl Command for Help {
    const SPEC: Spec = Spec {
        name: c"FS.SERVICE HELP",
        summary: c"Lists the commands for feature services.",
        complexity: c"O(1)",
        since: FIRST,
        flags: c"fast",
        categories: c"fs fast connection",
        arity: 2,
        keys: Keys::None,
        arguments: &[],
        reply: "An array of lines.",
        notes: "",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let lines = help::lines("FS.SERVICE ");
        call.context.reply_array(lines.len());
        lines.iter().for_each(|line| call.context.reply_text(line));
        Ok(())
    }
}
