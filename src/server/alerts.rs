//! Alerts: the stream and the channel that tell when drift starts and ends.

use crate::server::api::{Context, LogLevel, Replication, ServerString};
use crate::server::drift::Found;
use crate::server::effects::{append_entry, Effects};
use crate::server::events::quietly;
use crate::server::key::{Key, Mode, Precision};
use crate::server::state::{PreparedView, STATE};
use crate::server::streams;
use feature_store_core::codec::{AlertEffect, Effect, StreamEntry};
use feature_store_core::drift::finding::{Alert, Finding};
use feature_store_core::drift::method::Method;
use feature_store_core::drift::view::FedBy;

/// The key of the stream, and the name of the channel.
const ALERTS: &[u8] = b"fs:alerts";
/// About how many entries the stream keeps.
const ENTRIES_MAX: u64 = 10_000;

/// What a check holds its tests against.
#[derive(Clone, Copy)]
pub(crate) struct Levels {
    /// For p-values.
    significance: f64,
    /// For what chance alone does to methods without a p-value.
    chance_max: f64,
}

impl Levels {
    /// Shared among so many tests with a p-value, and so many without one.
    pub(crate) fn among(significance: f64, with_p: usize, without_p: usize) -> Self {
        Levels { significance: significance / with_p.max(1) as f64, chance_max: significance / without_p.max(1) as f64 }
    }
}

/// Starts and ends the alerts of a feature as a check found it. Answers how many started.
pub(crate) fn update(context: Context<'_>, found: &Found, levels: Levels, effects: &mut Effects<'_>) -> u64 {
    // What became another meanwhile is the next check's.
    let Some(prepared) = found.target.prepared(context) else { return 0 };
    if prepared.samples.identity(context, found.target.feature) != found.identity {
        return 0;
    }
    let feature = found.target.feature;
    let (alerts, fed_by) = {
        let drift = prepared.samples.drift(context);
        let Some(state) = drift.feature(feature) else { return 0 };
        (state.alerts, state.fed_by())
    };
    let mut started = 0;
    for method in Method::ALL {
        let was_alert = alerts & method.bit() != 0;
        // What is not tested any more has no alert.
        let finding = found.findings.iter().find(|f| fed_by != FedBy::Nobody && f.method == method);
        let is_alert = finding.is_some_and(|finding| match was_alert {
            true => finding.keeps_alert(levels.significance),
            false => finding.starts_alert(levels.significance, levels.chance_max),
        });
        if is_alert != was_alert {
            started += u64::from(is_alert);
            tell(context, &prepared, feature, method, is_alert, finding, effects);
        }
    }
    started
}

/// Ends all alerts of a version that is about to be dropped.
pub(crate) fn end_all(context: Context<'_>, prepared: &PreparedView, effects: &mut Effects<'_>) {
    let alerts: Vec<u16> = prepared.samples.drift(context).features().iter().map(|f| f.alerts).collect();
    for (feature, bits) in alerts.into_iter().enumerate().filter(|(_, bits)| *bits != 0) {
        for method in Method::ALL.into_iter().filter(|method| bits & method.bit() != 0) {
            tell(context, prepared, feature, method, false, None, effects);
        }
    }
}

fn set(context: Context<'_>, prepared: &PreparedView, feature: usize, method: Method, starts: bool) {
    if let Some(state) = prepared.samples.drift_mut(context).feature_mut(feature) {
        match starts {
            true => state.alerts |= method.bit(),
            false => state.alerts &= !method.bit(),
        }
    }
}

/// Notes that an alert starts or ends, and tells of it in the stream and on the channel.
fn tell(
    context: Context<'_>,
    prepared: &PreparedView,
    feature: usize,
    method: Method,
    starts: bool,
    finding: Option<&Finding>,
    effects: &mut Effects<'_>,
) {
    set(context, prepared, feature, method, starts);
    let (view, version) = (&prepared.view.name, prepared.view.version);
    let feature = &prepared.view.features()[feature].name;
    let alert = Alert { view, version, feature, starts, method, finding };
    let told: Vec<(&str, Vec<u8>)> = alert.members().into_iter().map(|(name, told)| (name, told.to_field())).collect();
    let fields: Vec<(&[u8], &[u8])> = told.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())).collect();
    let key = ServerString::new(ALERTS);
    let stream = Key::open(context, &key, Mode::Write);
    let id = quietly(|| append_entry(context, &stream, &key, fields.iter().copied(), None));
    let trimmed_to = match id {
        Some(_) => quietly(|| streams::trim(context, &stream, &key, ENTRIES_MAX, Precision::Approximate)),
        None => {
            let what = format!("fs: key 'fs:alerts' has no place for the alert {}", alert.to_json());
            context.log(LogLevel::Warning, &what);
            None
        }
    };
    drop(stream);
    let entry = id.map(|id| StreamEntry { id, fields });
    let effect = AlertEffect { view, version, feature, method, starts, entry, trimmed_to };
    effects.push(&key, &Effect::Alert(effect));
    context.call(c"PUBLISH", &[ALERTS, alert.to_json().as_bytes()], Replication::Replicated);
}

/// Executes what the primary told of an alert.
pub(crate) fn execute(context: Context<'_>, name: &ServerString, effect: &AlertEffect<'_>) -> Result<(), String> {
    let prepared = STATE.borrow(context).prepared_version(effect.view, effect.version);
    if let Some(prepared) = prepared {
        if let Some(feature) = prepared.view.position(effect.feature.as_bytes(), 0) {
            set(context, &prepared, feature, effect.method, effect.starts);
        }
    }
    let Some(StreamEntry { id, fields }) = &effect.entry else { return Ok(()) };
    let stream = Key::open(context, name, Mode::Write);
    append_entry(context, &stream, name, fields.iter().copied(), Some(*id))
        .ok_or_else(|| format!("entry {id} does not fit the alerts"))?;
    if let Some(length) = effect.trimmed_to {
        streams::trim(context, &stream, name, length, Precision::Exact);
    }
    Ok(())
}
