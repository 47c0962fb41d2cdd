//! FS.RANK.

use super::serve::{answer, service_of};
use super::{FIRST, SERVICE};
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::serving::Subjects;
use feature_store_core::service::{check_candidate_ids, checked_context_id};
use feature_store_core::{Error, Result};

/// Reads a service's features of one context and many candidates.
pub(super) struct Rank;

impl Command for Rank {
    const SPEC: Spec = Spec {
        name: c"FS.RANK",
        summary: c"Reads the features of a service for one context and its candidates.",
        complexity: c"O(N*F), N the number of candidates, F the number of features.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: -4,
        keys: Keys::None,
        arguments: &[SERVICE, Argument::text(c"context-id"), Argument::text(c"candidate-id").multiple()],
        reply: "As `FS.SERVE`, a row for each candidate in their order: in it the features of the context, which are \
                the same in all rows, those of the candidate and those of the pair.",
        notes:
            "The pair's id is `context-id:candidate-id`; a service that reads pairs takes no context id with a `:`. \
                Everything else is as in `FS.SERVE`.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let service = service_of(call)?;
        if service.service.ranking.is_none() {
            return Err(Error::syntax(format!("service '{}' does not rank: FS.SERVE reads it", service.service.name)));
        }
        let mut arguments = call.arguments();
        arguments.next("service")?;
        let context_id = checked_context_id(arguments.next("context id")?, &service.plan)?;
        let ids = arguments.rest();
        check_candidate_ids(ids, context_id, &service.plan)?;
        answer(call.context, &service, &Subjects { context_id: Some(context_id), ids })
    }
}
