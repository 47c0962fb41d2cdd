//! FS.DROP DATA: deletes what dropped versions stored, in slices. It goes on after a restart and after a failover.

use crate::server::api::{Context, Replication, ServerString};
use crate::server::background::{Deadline, Left};
use crate::server::effects::Effects;
use crate::server::events::quietly;
use crate::server::state::{State, STATE};
use feature_store_core::codec::{DropSnapshot, Effect};
use feature_store_core::keys::{dead_letter_key, stream_key, version_pattern};

/// Keys that one step of the scan looks at.
const SCAN_COUNT: &[u8] = b"64";

/// Where the scan of the first drop stands.
#[derive(Default)]
pub(crate) struct Progress {
    version: usize,
    cursor: Option<Vec<u8>>,
}

impl State {
    /// Forgets a drop whose data is gone.
    pub(crate) fn finish_drop(&mut self, view: &str) {
        if let Some(i) = self.registry.drops.iter().position(|d| d.view == view) {
            self.registry.drops.remove(i);
        }
        self.background.drop_progress = Progress::default();
    }
}

/// Works on the oldest drop until the deadline.
pub(crate) fn slice(context: Context<'_>, deadline: Deadline) -> Left {
    loop {
        let Some(job) = STATE.borrow(context).registry.drops.first().cloned() else { return Left::Nothing };
        step(context, &job);
        if deadline.is_over() {
            break;
        }
    }
    match STATE.borrow(context).registry.drops.is_empty() {
        true => Left::Nothing,
        false => Left::Work,
    }
}

fn step(context: Context<'_>, job: &DropSnapshot) {
    let progress = std::mem::take(&mut STATE.borrow_mut(context).background.drop_progress);
    let Some(version) = job.versions.get(progress.version) else {
        finish(context, job);
        return;
    };
    let pattern = version_pattern(&job.view, *version);
    let cursor = progress.cursor.unwrap_or_else(|| b"0".to_vec());
    let arguments: [&[u8]; 5] = [&cursor, b"MATCH", pattern.as_bytes(), b"COUNT", SCAN_COUNT];
    let reply = context.call(c"SCAN", &arguments, Replication::Local);
    let mut parts = reply.as_element().elements();
    let next = parts.next().and_then(|c| c.bytes()).unwrap_or(b"0").to_vec();
    let keys: Vec<&[u8]> =
        parts.next().map(|keys| keys.elements().filter_map(|k| k.bytes()).collect()).unwrap_or_default();
    if !keys.is_empty() {
        context.call(c"UNLINK", &keys, Replication::Replicated);
    }
    let mut state = STATE.borrow_mut(context);
    state.background.drop_progress = match next.as_slice() {
        b"0" => Progress { version: progress.version + 1, cursor: None },
        _ => Progress { version: progress.version, cursor: Some(next) },
    };
}

fn finish(context: Context<'_>, job: &DropSnapshot) {
    let stream = stream_key(&job.view);
    if job.streams {
        let letters = dead_letter_key(&job.view);
        quietly(|| context.call(c"UNLINK", &[stream.as_bytes(), letters.as_bytes()], Replication::Replicated));
    }
    STATE.borrow_mut(context).finish_drop(&job.view);
    let mut effects = Effects::new(context);
    effects.push(&ServerString::new(stream.as_bytes()), &Effect::DropDone);
    effects.replicate();
}
