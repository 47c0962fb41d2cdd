//! Alerts: the stream and the channel that tell when drift starts and ends.

use crate::server::api::{Context, LogLevel, Replication, ServerString};
use crate::server::drift::Found;
use crate::server::effects::{append_entry, Effects};
use crate::server::events::quietly;
use crate::server::key::{Key, Mode, Precision};
use crate::server::state::{PreparedView, STATE};
use crate::server::streams;
use feature_store_core::codec::{AlertEffect, Effect, StreamEntry};
use feature_store_core::drift::alert::{Alert, Levels};
use feature_store_core::drift::finding::Finding;
use feature_store_core::drift::method::Method;
use feature_store_core::drift::view::FedBy;

/// The key of the stream, and the name of the channel.
const ALERTS: &[u8] = b"fs:alerts";
/// About how many entries the stream keeps.
const ENTRIES_MAX: u64 = 10_000;

/// Starts and ends the alerts of a feature as a check found it. Answers how many started.
pub(crate) fn update(context: Context<'_>, found: &Found, levels: Levels, effects: &mut Effects<'_>) -> u64 {
    // What became another meanwhile is the next check's.
    let Some(prepared) = found.target.prepared(context) else { return 0 };
    let feature = found.target.feature;
    if prepared.samples.identity(context, feature) != found.identity {
        return 0;
    }
    let (active, fed_by) = match prepared.samples.drift(context).feature(feature) {
        Some(state) => (state.alerts, state.fed_by()),
        None => return 0,
    };
    // What is sampled no more is not tested any more.
    let findings = if fed_by == FedBy::Nobody { &[] } else { found.findings.as_slice() };
    let mut started = 0;
    for (method, starts, finding) in levels.changes(active, findings) {
        started += u64::from(starts);
        tell(context, &prepared, feature, method, starts, finding, effects);
    }
    started
}

/// Ends all alerts of a version that is about to be dropped.
pub(crate) fn end_all(context: Context<'_>, prepared: &PreparedView, effects: &mut Effects<'_>) {
    for feature in 0..prepared.view.features().len() {
        let active = prepared.samples.drift(context).feature(feature).map(|state| state.alerts);
        for method in active.unwrap_or_default().methods() {
            tell(context, prepared, feature, method, false, None, effects);
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
    prepared.samples.drift_mut(context).set_alert(feature, method, starts);
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
            prepared.samples.drift_mut(context).set_alert(feature, effect.method, effect.starts);
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
