//! FS.DRIFT.

use super::{version_before_feature, FIRST, VERSION, VIEW};
use crate::server::acl::{Access, Caller};
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::drift::{self, Target};
use feature_store_core::drift::method::fitting;
use feature_store_core::drift::request::DriftRequest;
use feature_store_core::{Error, Result};
use std::sync::Arc;

/// Compares current values with baselines.
pub(super) struct Drift;

impl Command for Drift {
    const SPEC: Spec = Spec {
        name: c"FS.DRIFT",
        summary: c"Tests whether the values of now have left the baseline.",
        complexity: c"O(F*N log N), F the number of features, N that of values; on a thread of its own.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: -2,
        keys: Keys::None,
        arguments: &[
            VIEW,
            VERSION,
            Argument::text(c"feature").optional(),
            Argument::block(
                c"test",
                &[Argument::text(c"method"), Argument::text(c"threshold").after(c"THRESHOLD").optional()],
            )
            .after(c"METHOD")
            .optional()
            .multiple(),
        ],
        reply: "An array of maps, one a feature and method, in the schema's order: `feature`, `method`, `baseline`, \
                `current` (what the method looks at on both sides), `statistic`, `p_value` (nil: the method has none), \
                `effect` (what is compared with the threshold), `threshold`, `alert` (a boolean), `baseline_n`, \
                `current_n` (how many values), `status` (`OK`, `ALERT`, or `INSUFFICIENT`: fewer than 100 values on a \
                side).",
        notes: "Methods: `MEAN`, `STDDEV`, `KS`, `PSI`, `WASSERSTEIN`, `JS`, `CHI2`, `MISSING`, `NEW_CATEGORIES`, \
                `CENTROID`. Without `METHOD` all are used that fit a feature's baseline. [DRIFT.md](DRIFT.md) tells \
                their formulas and thresholds. The caller waits, the server does not; not inside MULTI or a script. \
                Without `VERSION` the newest version is tested.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let prepared = version_before_feature(context, view, &mut arguments)?;
        let request = DriftRequest::parse(&prepared.view, &mut arguments)?;
        Caller::of(context).require(context, &prepared.log.stream_key, Access::Read)?;
        if context.flags().denies_blocking() {
            return Err(Error::syntax("FS.DRIFT works on a thread and cannot run inside MULTI or a script"));
        }
        let definition = &prepared.view;
        let features = request.feature.map_or_else(|| (0..definition.features().len()).collect(), |f| vec![f]);
        let mut targets = Vec::new();
        let mut has_baseline = false;
        for feature in features {
            let drift = prepared.samples.drift(context);
            let Some(baseline) = drift.baseline(definition, feature)? else { continue };
            has_baseline = true;
            let fitting = fitting(&baseline, &request.tests);
            // Of a feature that was named all that was asked for is told, or nothing.
            let is_whole = request.feature.is_none() || fitting.len() >= request.tests.len();
            if !fitting.is_empty() && is_whole {
                targets.push(Target::new(&prepared, feature));
            }
        }
        if targets.is_empty() {
            let what = match request.feature {
                Some(feature) => {
                    format!("feature '{}' of view '{}'", definition.features()[feature].name, definition.name)
                }
                None => format!("every feature of view '{}'", definition.name),
            };
            let why = match (has_baseline, request.tests.as_slice()) {
                (false, _) => "lacks a baseline: set one by FS.BASELINE".to_owned(),
                (true, tests) => {
                    let names: Vec<&str> = tests.iter().map(|test| test.method.name()).collect();
                    format!("has a baseline that {} does not fit", names.join(" or "))
                }
            };
            return Err(Error::syntax(format!("{what} {why}")));
        }
        drift::call(context, Arc::clone(definition), targets, request.tests);
        Ok(())
    }
}
