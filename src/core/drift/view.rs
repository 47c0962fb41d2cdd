//! The drift state of a version of a view: a current window and a baseline for each feature.

use super::alert::ActiveAlerts;
use super::baseline::Baseline;
use super::current::{Current, Given, Observed};
use super::method::Method;
use super::sample::Arrival;
use super::steps::{Bounds, Steps};
use crate::codec::CodecError;
use crate::definition::{FeatureView, SampleOn};
use crate::error::Result;
use bincode::{Decode, Encode};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Numbers that decide which arrivals are offered at all are drawn apart from those that decide what is kept.
const OFFER_SEED: u64 = 1;

/// What feeds a feature's current window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum FedBy {
    /// Updates. All copies agree.
    Publishing,
    /// Answers to readers. Each node has its own.
    Serving,
    /// Nothing: the view samples what is served, and an INPUT never is; or it samples nothing.
    Nobody,
}

impl FedBy {
    /// What feeds a feature of a view.
    pub fn of(view: &FeatureView, feature: usize) -> Self {
        let definition = &view.features()[feature];
        match view.sample.on {
            _ if view.sample.rate == 0.0 => FedBy::Nobody,
            _ if definition.window.is_some() => FedBy::Serving,
            SampleOn::Publish => FedBy::Publishing,
            SampleOn::Serve if definition.input => FedBy::Nobody,
            SampleOn::Serve => FedBy::Serving,
        }
    }
}

/// Arrivals by part of the while.
type Arrivals = Steps<()>;

/// What comes from one side.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode)]
struct Side {
    bounds: Bounds,
    /// Arrivals that were taken in: they number the draws.
    arrivals: u64,
}

impl Side {
    fn next(&mut self, now_ms: i64) -> Arrival {
        self.arrivals += 1;
        let draw = xxh3_64_with_seed(&self.arrivals.to_le_bytes(), 0);
        Arrival { step: self.bounds.step_of(now_ms), draw, slack: 0 }
    }
}

/// The state of one feature.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct FeatureDrift {
    /// What training saw, where FS.BASELINE said so.
    pub baseline: Option<Arc<Baseline>>,
    /// What came lately.
    pub current: Current,
    /// The methods that alert.
    pub alerts: ActiveAlerts,
    /// Rises when the baseline or the window is another: what was found before is about something else.
    pub generation: u32,
    fed_by: FedBy,
    /// Updates that came before its window began, where some did: the window knows nothing of them.
    before: Option<Arrivals>,
}

impl FeatureDrift {
    /// What feeds its current window.
    pub fn fed_by(&self) -> FedBy {
        self.fed_by
    }
}

/// The state of a version of a view. Features stand in the schema's order.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct ViewDrift {
    published: Side,
    served: Side,
    /// Updates that carry features which rows hold. A feature that one does not carry is absent from it: only those
    /// that it carries are touched.
    updates: Arrivals,
    /// Updates that carry inputs.
    events: Arrivals,
    features: Vec<FeatureDrift>,
    /// What most updates touch of each feature, side by side: most values are counted and not kept.
    counts: Vec<Count>,
    /// The part of the while that is counted.
    counted_step: i64,
}

/// Values of a feature that updates brought in a part of the while and that were not kept.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode)]
struct Count {
    /// Draws beyond this are not kept.
    kept_up_to: u64,
    not_kept: u64,
    is_fed: bool,
    is_input: bool,
}

impl Count {
    const NOTHING: Count = Count { kept_up_to: u64::MAX, not_kept: 0, is_fed: false, is_input: false };
}

/// Is this one of the arrivals that are offered, when so large a share of them is? `number` counts them.
pub fn is_offered(number: u64, rate: f64) -> bool {
    if rate >= 1.0 {
        return true;
    }
    let draw = xxh3_64_with_seed(&number.to_le_bytes(), OFFER_SEED);
    (draw as f64) < rate * u64::MAX as f64
}

impl ViewDrift {
    /// Nothing came yet.
    ///
    /// All copies begin with the same bounds; the primary tells others when the first update comes.
    pub fn new(view: &FeatureView) -> Self {
        let side = Side { bounds: Bounds::default(), arrivals: 0 };
        let (updates, events) = Default::default();
        let mut drift = ViewDrift {
            published: side,
            served: side,
            updates,
            events,
            features: Vec::new(),
            counts: Vec::new(),
            counted_step: i64::MIN,
        };
        drift.follow(view);
        drift
    }

    /// Follows an alteration of the view.
    pub fn follow(&mut self, view: &FeatureView) {
        self.counts.resize(view.features().len(), Count::NOTHING);
        for (i, definition) in view.features().iter().enumerate() {
            let fed_by = FedBy::of(view, i);
            if i == self.features.len() {
                let current = Current::of(definition.ty);
                self.features.push(FeatureDrift {
                    baseline: None,
                    current,
                    alerts: ActiveAlerts::default(),
                    generation: 0,
                    fed_by,
                    before: None,
                });
                self.clear_current(view, i);
            } else if self.features[i].fed_by != fed_by {
                self.features[i].fed_by = fed_by;
                self.clear_current(view, i);
            }
            let count = &mut self.counts[i];
            count.kept_up_to = self.features[i].current.kept_up_to();
            (count.is_fed, count.is_input) = (fed_by == FedBy::Publishing, definition.input);
        }
    }

    /// Takes in an update: its features, each with the stored form of its value, or nothing where it is removed.
    ///
    /// Features that rows hold and inputs are counted apart: an update of only the ones says nothing of the others.
    pub fn publish<'u>(&mut self, fields: impl Iterator<Item = (usize, Option<&'u [u8]>)>, now_ms: i64) {
        let mut arrival = self.published.next(now_ms);
        let bounds = self.published.bounds;
        if arrival.step > self.counted_step {
            self.begin_step(arrival.step);
        }
        // A clock that goes back changes nothing.
        arrival.step = self.counted_step;
        let (mut has_inputs, mut has_stored) = (false, false);
        for (i, field) in fields {
            let count = &mut self.counts[i];
            (has_inputs, has_stored) = (has_inputs || count.is_input, has_stored || !count.is_input);
            let (true, Some(field)) = (count.is_fed, field) else { continue };
            if arrival.draw_of(i) > count.kept_up_to {
                count.not_kept += 1;
                continue;
            }
            let current = &mut self.features[i].current;
            current.take(arrival.seen_by(i, bounds), bounds, Given::Field(field));
            count.kept_up_to = current.kept_up_to();
        }
        if has_stored {
            self.updates.count(arrival.step);
        }
        if has_inputs {
            self.events.count(arrival.step);
        }
    }

    /// Hands over what was counted, and begins a part of the while for all features that updates feed.
    fn begin_step(&mut self, step: i64) {
        let bounds = self.published.bounds;
        for (feature, count) in self.features.iter_mut().zip(&mut self.counts).filter(|(_, count)| count.is_fed) {
            feature.current.begin_step(std::mem::take(&mut count.not_kept), step, bounds);
            count.kept_up_to = feature.current.kept_up_to();
        }
        self.counted_step = step;
    }

    /// Begins a row that is served; its values follow by [`ViewDrift::serve`].
    pub fn next_served(&mut self, now_ms: i64) -> Arrival {
        self.served.next(now_ms)
    }

    /// Takes in what a reader was given for a feature.
    pub fn serve(&mut self, place: usize, arrival: Arrival, given: Given<'_>) {
        let bounds = self.served.bounds;
        if let Some(feature) = self.features.get_mut(place).filter(|f| f.fed_by == FedBy::Serving) {
            feature.current.take(arrival.seen_by(place, bounds), bounds, given);
        }
    }

    /// Is this feature sampled when rows are served?
    pub fn samples_when_served(&self, place: usize) -> bool {
        self.features.get(place).is_some_and(|f| f.fed_by == FedBy::Serving)
    }

    /// Is anything sampled when rows are served?
    pub fn samples_serving(&self) -> bool {
        self.features.iter().any(|f| f.fed_by == FedBy::Serving)
    }

    /// Is anything sampled when updates come?
    pub fn samples_publishing(&self) -> bool {
        self.features.iter().any(|f| f.fed_by == FedBy::Publishing)
    }

    /// What bounds the windows that updates feed.
    pub fn published_bounds(&self) -> Bounds {
        self.published.bounds
    }

    /// What bounds the windows that serving feeds.
    pub fn served_bounds(&self) -> Bounds {
        self.served.bounds
    }

    /// Other bounds for what updates feed.
    pub fn rebound_published(&mut self, bounds: Bounds) {
        if self.counted_step > i64::MIN {
            self.begin_step(self.counted_step);
            // The next update begins a part by the new measure.
            self.counted_step = i64::MIN;
        }
        let old = std::mem::replace(&mut self.published.bounds, bounds);
        let before = self.features.iter_mut().filter_map(|feature| feature.before.as_mut());
        for arrivals in before.chain([&mut self.updates, &mut self.events]) {
            arrivals.recut(old, bounds, |(), ()| ());
        }
        self.rebound(FedBy::Publishing, old, bounds);
    }

    /// Other bounds for what serving feeds.
    pub fn rebound_served(&mut self, bounds: Bounds) {
        let old = std::mem::replace(&mut self.served.bounds, bounds);
        self.rebound(FedBy::Serving, old, bounds);
    }

    fn rebound(&mut self, fed_by: FedBy, old: Bounds, new: Bounds) {
        let fed = self.features.iter_mut().filter(|f| f.fed_by == fed_by);
        fed.for_each(|feature| feature.current.rebound(old, new));
    }

    /// The state of a feature.
    pub fn feature(&self, feature: usize) -> Option<&FeatureDrift> {
        self.features.get(feature)
    }

    /// Notes that an alert of a feature has started, or has ended.
    pub fn set_alert(&mut self, feature: usize, method: Method, starts: bool) {
        if let Some(state) = self.features.get_mut(feature) {
            state.alerts.set(method, starts);
        }
    }

    /// The states of all features, in the schema's order.
    pub fn features(&self) -> &[FeatureDrift] {
        &self.features
    }

    /// What came lately for a feature of a view.
    pub fn observe(&self, view: &FeatureView, feature: usize, now_ms: i64) -> Option<Observed> {
        let (state, definition) = (self.features.get(feature)?, view.features().get(feature)?);
        if state.fed_by == FedBy::Serving {
            return Some(state.current.observe(now_ms, self.served.bounds));
        }
        let bounds = self.published.bounds;
        let mut observed = state.current.observe(now_ms, bounds);
        if state.fed_by == FedBy::Publishing {
            let all = if definition.input { &self.events } else { &self.updates };
            let count = |arrivals: &Arrivals| arrivals.arrivals_since(bounds.first_step(now_ms)).0;
            let came = count(all).saturating_sub(state.before.as_ref().map_or(0, count));
            if self.counted_step >= bounds.first_step(now_ms) {
                observed.present += self.counts[feature].not_kept;
            }
            observed.absent = came.saturating_sub(observed.present);
        }
        Some(observed)
    }

    /// What a feature is compared with: what FS.BASELINE set, or what the definition expects.
    pub fn baseline(&self, view: &FeatureView, feature: usize) -> Result<Option<Arc<Baseline>>> {
        if let Some(set) = self.features.get(feature).and_then(|f| f.baseline.clone()) {
            return Ok(Some(set));
        }
        let definition = &view.features()[feature];
        let expected = definition.expected.as_ref();
        expected.map(|e| Baseline::of_expected(&view.name, definition, e).map(Arc::new)).transpose()
    }

    /// Sets or forgets what FS.BASELINE said.
    pub fn set_baseline(&mut self, feature: usize, baseline: Option<Arc<Baseline>>) {
        if let Some(state) = self.features.get_mut(feature) {
            state.baseline = baseline;
            state.generation = state.generation.wrapping_add(1);
        }
    }

    /// Forgets what came lately for a feature.
    pub fn clear_current(&mut self, view: &FeatureView, feature: usize) {
        let (Some(state), Some(definition)) = (self.features.get_mut(feature), view.features().get(feature)) else {
            return;
        };
        state.current = Current::of(definition.ty);
        state.generation = state.generation.wrapping_add(1);
        let count = &mut self.counts[feature];
        (count.not_kept, count.kept_up_to) = (0, state.current.kept_up_to());
        let came = if definition.input { &self.events } else { &self.updates };
        state.before = (state.fed_by == FedBy::Publishing && !came.is_empty()).then(|| came.clone());
    }

    /// Takes over what another node has, but for what was served: that is each node's own, where it has that feature.
    pub fn keep_own_serving(&mut self, view: &FeatureView, own: Option<(&ViewDrift, &FeatureView)>) {
        for (state, definition) in self.features.iter_mut().zip(view.features()) {
            if state.fed_by != FedBy::Serving {
                continue;
            }
            let of_own = own.and_then(|(own, own_view)| {
                let place = own_view.position(definition.name.as_bytes(), 0)?;
                let is_same = own_view.features()[place].ty == definition.ty;
                own.features.get(place).filter(|own| is_same && own.fed_by == FedBy::Serving)
            });
            state.current = of_own.map_or_else(|| Current::of(definition.ty), |own| own.current.clone());
        }
        if let Some((own, _)) = own {
            self.served = own.served;
        }
    }

    /// Does it belong to this view, and is it in order? What was read from a file may not be.
    pub fn check(&self, view: &FeatureView) -> std::result::Result<(), CodecError> {
        let bounds_are_sound =
            |b: Bounds| (8..=1 << 32).contains(&b.values_max) && (48..=1 << 48).contains(&b.age_ms_max);
        let is_sound = bounds_are_sound(self.published.bounds)
            && bounds_are_sound(self.served.bounds)
            && self.updates.are_in_order()
            && self.events.are_in_order()
            && self.features.len() == view.features().len()
            && self.counts.len() == view.features().len()
            && self.counts.iter().all(|count| count.not_kept < 1 << 56)
            && self.features.iter().zip(view.features()).enumerate().all(|(i, (state, definition))| {
                state.current.is_sound(definition.ty)
                    && state.fed_by == FedBy::of(view, i)
                    && state.before.as_ref().is_none_or(Arrivals::are_in_order)
                    && state.baseline.as_ref().is_none_or(|baseline| baseline.is_sound(definition.ty))
            });
        match is_sound {
            true => Ok(()),
            false => Err(CodecError::new(format!("the drift state of view '{}' is damaged", view.name))),
        }
    }

    /// How many alerts are active.
    pub fn alerts(&self) -> u64 {
        self.features.iter().map(|f| f.alerts.methods().count() as u64).sum()
    }

    /// Bytes of windows and baselines on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        let baseline = |f: &FeatureDrift| f.baseline.as_ref().map_or(0, |b| b.heap_bytes());
        self.features.iter().map(|f| f.current.heap_bytes() + baseline(f)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use crate::codec::{decode_plain, encode_plain};
    use crate::drift::current::ObservedValues;
    use crate::drift::sums::MeanVector;
    use crate::schema_syntax::parse_registration;
    use crate::value::Value;

    fn view(options: &str) -> FeatureView {
        let words = format!(
            "ENTITY u {options} SCHEMA a INT s STRING e VECTOR 2 l LIST x FLOAT INPUT n INT AGG COUNT x WINDOW 1h"
        );
        let items: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        parse_registration(b"v", &mut Arguments::new(&items)).expect("a definition")
    }

    fn counts(view: &FeatureView, drift: &ViewDrift) -> Vec<(u64, u64)> {
        (0..6).filter_map(|i| drift.observe(view, i, 0)).map(|o| (o.present, o.absent)).collect()
    }

    #[test]
    fn an_update_counts_for_the_features_that_it_could_have_carried() {
        let view = view("");
        let mut drift = ViewDrift::new(&view);
        drift.publish([(0, Some(&b"5"[..])), (1, None)].into_iter(), 0);
        drift.publish([(4, Some(&b"1.5"[..]))].into_iter(), 0);
        assert_eq!(counts(&view, &drift), [(1, 0), (0, 1), (0, 1), (0, 1), (1, 0), (0, 0)]);
        let arrival = drift.next_served(0);
        drift.serve(5, arrival, Given::Served(&Value::Int(7)));
        drift.serve(0, arrival, Given::Served(&Value::Int(7)));
        assert_eq!(counts(&view, &drift)[5], (1, 0));
        assert_eq!(counts(&view, &drift)[0], (1, 0));
        assert_eq!(drift.observe(&view, 5, 0).expect("a feature").values, ObservedValues::Numbers(vec![7.0]));
    }

    #[test]
    fn a_view_that_samples_what_it_serves_takes_nothing_from_updates() {
        let view = view("SAMPLE 1 ON SERVE");
        let mut drift = ViewDrift::new(&view);
        drift.publish([(0, Some(&b"5"[..])), (4, Some(&b"5"[..]))].into_iter(), 0);
        let arrival = drift.next_served(0);
        drift.serve(0, arrival, Given::Absent);
        drift.serve(2, arrival, Given::Served(&Value::Vector(vec![1.0, 2.0])));
        assert_eq!(counts(&view, &drift), [(0, 1), (0, 0), (1, 0), (0, 0), (0, 0), (0, 0)]);
        let mean = MeanVector { mean: vec![1.0, 2.0], spread: 0.0, n: 1 };
        let observed = drift.observe(&view, 2, 0).expect("a feature");
        assert_eq!(observed.values, ObservedValues::Mean(Some(mean)));
    }

    #[test]
    fn an_alteration_empties_what_it_feeds_otherwise() {
        let (before, after) = (view(""), view("SAMPLE 1 ON SERVE"));
        let mut drift = ViewDrift::new(&before);
        drift.publish([(0, Some(&b"5"[..]))].into_iter(), 0);
        let arrival = drift.next_served(0);
        drift.serve(5, arrival, Given::Served(&Value::Int(1)));
        drift.follow(&after);
        assert_eq!((counts(&after, &drift)[0], counts(&after, &drift)[5]), ((0, 0), (1, 0)));
        drift.follow(&before);
        drift.publish([(1, Some(&b"x"[..]))].into_iter(), 0);
        assert_eq!(counts(&before, &drift)[..2], [(0, 1), (1, 0)]);
    }

    #[test]
    fn all_arrivals_are_counted_whatever_is_kept() {
        let view = view("");
        let mut drift = ViewDrift::new(&view);
        let few = Bounds { values_max: 100, age_ms_max: 48_000 };
        drift.rebound_published(few);
        let publish = |drift: &mut ViewDrift, from: i64, to: i64| {
            for ms in from..to {
                let text = ms.to_string();
                drift.publish([(0, Some(text.as_bytes())), (1, Some(text.as_bytes()))].into_iter(), ms);
            }
        };
        let told = |drift: &ViewDrift, ms: i64| {
            let observed = drift.observe(&view, 1, ms).expect("a feature");
            let absent = drift.observe(&view, 2, ms).expect("a feature").absent;
            (observed.present, observed.absent, absent)
        };
        publish(&mut drift, 0, 40_000);
        assert_eq!(told(&drift, 39_999), (40_000, 0, 40_000));
        // The part of 0 to 1,000 is forgotten when that of 48,000 begins.
        publish(&mut drift, 40_000, 49_000);
        assert_eq!(told(&drift, 48_999), (48_000, 0, 48_000));
        drift.rebound_published(Bounds { values_max: 50, age_ms_max: 96_000 });
        publish(&mut drift, 49_000, 50_000);
        assert_eq!(told(&drift, 49_999), (49_000, 0, 49_000));
        assert!(drift.check(&view).is_ok());
        let numbers = |observed: Observed| match observed.values {
            ObservedValues::Numbers(numbers) => numbers.len(),
            _ => 0,
        };
        assert!((30..=50).contains(&numbers(drift.observe(&view, 0, 49_999).expect("a feature"))));
    }

    #[test]
    fn a_share_of_arrivals_is_offered() {
        let offered = (0..100_000).filter(|n| is_offered(*n, 0.1)).count();
        assert!((9_500..=10_500).contains(&offered), "{offered}");
        assert!(is_offered(1, 1.0) && !(0..1_000).any(|n| is_offered(n, 0.0)));
    }

    #[test]
    fn it_is_written_and_read_back_and_damage_is_seen() {
        let view = view("");
        let mut drift = ViewDrift::new(&view);
        drift.rebound_published(Bounds { values_max: 100, age_ms_max: 48_000 });
        for i in 0..300u32 {
            let (number, raw) = (i.to_string(), [1u8; 8]);
            let fields = [(0, Some(number.as_bytes())), (1, Some(number.as_bytes())), (2, Some(&raw[..]))];
            drift.publish(fields.into_iter(), i64::from(i) * 200);
        }
        let bytes = encode_plain(&drift);
        let read: ViewDrift = decode_plain(&bytes).expect("bytes");
        assert!(read == drift && read.check(&view).is_ok());
        // Every seventh: lengths, levels and values are all hit.
        for i in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x55;
            if let Ok(mut read) = decode_plain::<ViewDrift>(&damaged) {
                if read.check(&view).is_ok() {
                    // Whatever passes must not panic when it is used.
                    read.publish([(0, Some(&b"5"[..])), (1, Some(&b"x"[..]))].into_iter(), 60_000);
                    (0..6).for_each(|f| drop(read.observe(&view, f, 60_000)));
                    read.rebound_published(Bounds { values_max: 10, age_ms_max: 480 });
                }
            }
        }
    }
}
