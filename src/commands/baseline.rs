//! FS.BASELINE.

use super::{version_before_feature, FIRST, VERSION, VIEW};
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::config;
use crate::server::effects::Effects;
use crate::server::samples;
use feature_store_core::codec::{DriftChange, DriftEffect, Effect};
use feature_store_core::drift::baseline::{parse_baseline, Baseline as Values, BaselineCommand};
use feature_store_core::Result;
use std::sync::Arc;

const MISSING: Argument = Argument::text(c"share").after(c"MISSING").optional();

/// Sets what a feature's values are compared with.
pub(super) struct Baseline;

impl Command for Baseline {
    const SPEC: Spec = Spec {
        name: c"FS.BASELINE",
        summary: c"Sets or forgets what the values of a feature are compared with.",
        complexity: c"O(N log N), N the number of values.",
        since: FIRST,
        flags: c"write deny-oom admin",
        categories: c"fs write slow admin dangerous",
        arity: -4,
        keys: Keys::None,
        arguments: &[
            VIEW,
            VERSION,
            Argument::text(c"feature"),
            Argument::one_of(
                c"form",
                &[
                    Argument::block(
                        c"stats",
                        &[
                            Argument::text(c"mean").after(c"mean"),
                            Argument::text(c"stddev").after(c"stddev"),
                            Argument::text(c"min").after(c"min").optional(),
                            Argument::text(c"max").after(c"max").optional(),
                            Argument::text(c"share-of-absent-values").after(c"missing").optional(),
                        ],
                    )
                    .after(c"STATS"),
                    Argument::block(
                        c"samples",
                        &[Argument::integer(c"count"), Argument::text(c"value").multiple(), MISSING],
                    )
                    .after(c"SAMPLES"),
                    Argument::block(
                        c"categories",
                        &[
                            Argument::integer(c"count"),
                            Argument::block(c"category", &[Argument::text(c"value"), Argument::integer(c"times")])
                                .multiple(),
                            MISSING,
                        ],
                    )
                    .after(c"CATEGORIES"),
                    Argument::word(c"FREEZE"),
                    Argument::one_of(c"what", &[Argument::word(c"BASELINE"), Argument::word(c"CURRENT")])
                        .after(c"CLEAR"),
                ],
            ),
        ],
        reply: "`OK`.",
        notes: "`STATS` gives figures from training, `SAMPLES` values, `CATEGORIES` how often each value came; \
                `FREEZE` takes the current window, `CLEAR` forgets the baseline or the current window. Which form fits \
                which type, and what each is compared by: [DRIFT.md](DRIFT.md). Without `VERSION` the newest version \
                is meant.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let prepared = version_before_feature(context, view, &mut arguments)?;
        let name = arguments.next("feature")?;
        let feature = prepared.view.position(name, 0).ok_or_else(|| prepared.view.no_feature(name))?;
        let values_max = config::DRIFT_SAMPLES.get_u64();
        let change = match parse_baseline(&prepared.view, feature, &mut arguments, values_max)? {
            BaselineCommand::Set(baseline) => DriftChange::Baseline(Some(Arc::new(baseline))),
            BaselineCommand::ClearBaseline => DriftChange::Baseline(None),
            BaselineCommand::ClearCurrent => DriftChange::ClearCurrent,
            BaselineCommand::Freeze => {
                let drift = prepared.samples.drift(context);
                let definition = &prepared.view.features()[feature];
                let state = drift.feature(feature).zip(drift.observe(&prepared.view, feature, context.now_ms()));
                let (state, observed) = state.expect("every feature has a drift state");
                let baseline = Values::frozen(&prepared.view.name, definition, &state.current, observed)?;
                DriftChange::Baseline(Some(Arc::new(baseline)))
            }
        };
        let definition = &prepared.view;
        let mut effects = Effects::new(context);
        let feature_name = &definition.features()[feature].name;
        let effect = DriftEffect { version: definition.version, feature: feature_name, change: change.clone() };
        effects.push(&prepared.log.stream_key, &Effect::Drift(effect));
        effects.replicate();
        samples::change(context, &prepared, feature, change);
        context.reply_ok();
        Ok(())
    }
}
