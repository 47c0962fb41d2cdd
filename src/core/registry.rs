//! The registry: every view with its versions, and what must outlive a restart beside the rows.

use crate::codec::{DropSnapshot, Snapshot, ViewSnapshot};
use crate::cursor::Cursor;
use crate::definition::FeatureView;
use crate::document::{parse_document, to_document};
use crate::error::{shown, Code, Error, Result};
use crate::schema_syntax::Alteration;
use crate::service::Service;
use crate::stream_id::StreamId;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A view: its versions, and the state of the one log that they share.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The versions; never empty inside a registry.
    pub versions: BTreeMap<u32, Arc<FeatureView>>,
    /// FS.CONSUMER STOP is in force.
    pub stopped: bool,
    /// Where the consumer stood last; the group `fs` on the stream is the truth, this remakes it when it is lost.
    pub cursor: Option<Cursor>,
    /// The generation of a version's windows, raised when they are cleared: states of an earlier one are void. None: 0.
    pub window_generations: BTreeMap<u32, u32>,
    tombstones: HashMap<(u32, Vec<u8>), StreamId>,
}

impl View {
    /// The newest version.
    pub fn newest(&self) -> &Arc<FeatureView> {
        self.versions.values().next_back().expect("a registered view has a version")
    }

    /// The versions that plain XADDs are materialized into.
    pub fn consuming(&self) -> Vec<Arc<FeatureView>> {
        self.versions.values().filter(|v| v.consumer).cloned().collect()
    }

    /// About how many entries the shared log keeps: what the most demanding version asks for.
    pub fn maxlen(&self) -> u64 {
        self.versions.values().map(|v| v.maxlen).max().unwrap_or(1)
    }

    /// Remembers that entries up to `id` must not bring a deleted row back.
    pub fn bury(&mut self, version: u32, entity_id: &[u8], id: StreamId) {
        let newest = self.tombstones.entry((version, entity_id.to_vec())).or_default();
        *newest = id.max(*newest);
    }

    /// Is this entry older than the row's deletion?
    pub fn is_buried(&self, version: u32, entity_id: &[u8], id: StreamId) -> bool {
        // Rows are deleted rarely: mostly this is all that a consumed entry costs.
        !self.tombstones.is_empty()
            && self.tombstones.get(&(version, entity_id.to_vec())).is_some_and(|buried| id <= *buried)
    }

    /// Forgets deletions that no entry after `consumed` can undo.
    pub fn forget_tombstones(&mut self, consumed: StreamId) {
        self.tombstones.retain(|_, id| *id > consumed);
    }

    /// Forgets all deletions: the rows and the log are gone.
    pub fn forget_all_tombstones(&mut self) {
        self.tombstones.clear();
    }

    /// How many deletions are remembered.
    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }
}

/// Every view and every service, by name.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    views: BTreeMap<String, View>,
    services: BTreeMap<String, Arc<Service>>,
    /// Data of dropped versions that is still being deleted.
    pub drops: Vec<DropSnapshot>,
}

fn no_view(name: &[u8]) -> Error {
    Error::new(Code::NoView, format!("view '{}' is not registered", shown(name)))
}

impl Registry {
    /// Adds a version. The same definition again changes nothing and answers false.
    pub fn register(&mut self, definition: FeatureView) -> Result<bool> {
        if self
            .drops
            .iter()
            .any(|d| d.view == definition.name && (d.streams || d.versions.contains(&definition.version)))
        {
            return Err(Error::new(
                Code::Busy,
                format!("the data of dropped view '{}' is still being deleted", definition.name),
            ));
        }
        let existing = self.views.get(&definition.name).and_then(|v| v.versions.get(&definition.version));
        match existing {
            Some(existing) if existing.is_same_definition(&definition) => Ok(false),
            Some(_) => Err(Error::new(
                Code::ViewExists,
                format!(
                    "version {} of view '{}' is registered with another definition",
                    definition.version, definition.name
                ),
            )),
            None => {
                let view = self.views.entry(definition.name.clone()).or_default();
                view.versions.insert(definition.version, Arc::new(definition));
                Ok(true)
            }
        }
    }

    /// Changes a version in place.
    pub fn alter(&mut self, name: &[u8], version: Option<u32>, alteration: &Alteration) -> Result<()> {
        let altered = Arc::new(alteration.applied_to(self.version(name, version)?)?);
        let view = self.view_mut(name)?;
        view.versions.insert(altered.version, altered);
        Ok(())
    }

    /// Removes a version, or all. With `data`, what they stored is noted for deletion. Answers what was removed.
    pub fn drop_view(&mut self, name: &[u8], version: Option<u32>, data: bool) -> Result<DropSnapshot> {
        if let Some(version) = version {
            self.version(name, Some(version))?;
        }
        let view = self.view_mut(name)?;
        let removed = DropSnapshot {
            view: String::from_utf8_lossy(name).into_owned(),
            versions: version.map_or_else(|| view.versions.keys().copied().collect(), |v| vec![v]),
            streams: version.is_none_or(|v| view.versions.len() == 1 && view.versions.contains_key(&v)),
        };
        for version in &removed.versions {
            view.versions.remove(version);
            view.window_generations.remove(version);
        }
        if view.versions.is_empty() {
            self.views.remove(&removed.view);
        }
        if data {
            self.drops.push(removed.clone());
        }
        Ok(removed)
    }

    /// A view by name.
    pub fn view(&self, name: &[u8]) -> Result<&View> {
        std::str::from_utf8(name).ok().and_then(|n| self.views.get(n)).ok_or_else(|| no_view(name))
    }

    /// A view by name, to change its state.
    pub fn view_mut(&mut self, name: &[u8]) -> Result<&mut View> {
        std::str::from_utf8(name).ok().and_then(|n| self.views.get_mut(n)).ok_or_else(|| no_view(name))
    }

    /// A version of a view, or its newest.
    pub fn version(&self, name: &[u8], version: Option<u32>) -> Result<&Arc<FeatureView>> {
        let view = self.view(name)?;
        match version {
            None => Ok(view.newest()),
            Some(version) => view.versions.get(&version).ok_or_else(|| {
                Error::new(Code::NoView, format!("version {version} of view '{}' is not registered", shown(name)))
            }),
        }
    }

    /// All views, by name.
    pub fn views(&self) -> impl Iterator<Item = (&String, &View)> {
        self.views.iter()
    }

    /// All views, to change their state.
    pub fn views_mut(&mut self) -> impl Iterator<Item = (&String, &mut View)> {
        self.views.iter_mut()
    }

    /// Sets a service, in place of one of that name.
    pub fn set_service(&mut self, service: Service) {
        self.services.insert(service.name.clone(), Arc::new(service));
    }

    /// A service by name.
    pub fn service(&self, name: &[u8]) -> Result<&Arc<Service>> {
        let found = std::str::from_utf8(name).ok().and_then(|n| self.services.get(n));
        found.ok_or_else(|| Error::new(Code::NoService, format!("service '{}' is not set", shown(name))))
    }

    /// Removes a service.
    pub fn delete_service(&mut self, name: &[u8]) -> Result<()> {
        let name = self.service(name)?.name.clone();
        self.services.remove(&name);
        Ok(())
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All of it, to be written.
    pub fn to_snapshot(&self) -> Snapshot {
        let views = self.views.iter().map(|(name, view)| {
            let mut tombstones: Vec<_> =
                view.tombstones.iter().map(|((version, id), stream_id)| (*version, id.clone(), *stream_id)).collect();
            tombstones.sort_unstable();
            ViewSnapshot {
                name: name.clone(),
                versions: view.versions.values().map(|v| (to_document(v), v.ttl_was_removed)).collect(),
                stopped: view.stopped,
                cursor: view.cursor,
                tombstones,
                window_generations: view.window_generations.iter().map(|(v, g)| (*v, *g)).collect(),
            }
        });
        let services = self.services.values().map(|service| Service::clone(service));
        Snapshot { views: views.collect(), services: services.collect(), drops: self.drops.clone() }
    }

    /// Reads it back. An error names the definition that cannot be read; nothing is half loaded.
    pub fn from_snapshot(snapshot: Snapshot) -> Result<Self> {
        let mut registry = Registry::default();
        for saved in snapshot.views {
            for (document, ttl_was_removed) in &saved.versions {
                let mut definition = parse_document(saved.name.as_bytes(), document.as_bytes())?;
                definition.ttl_was_removed = *ttl_was_removed;
                registry.register(definition)?;
            }
            let view = registry.view_mut(saved.name.as_bytes())?;
            view.stopped = saved.stopped;
            view.cursor = saved.cursor;
            view.window_generations = saved.window_generations.into_iter().collect();
            view.tombstones = saved.tombstones.into_iter().map(|(v, id, stream_id)| ((v, id), stream_id)).collect();
        }
        for service in snapshot.services {
            // Its views may be gone: that is told when it is asked.
            service.check()?;
            registry.set_service(service);
        }
        registry.drops = snapshot.drops;
        Ok(registry)
    }

    /// True when there is nothing to save.
    pub fn is_empty(&self) -> bool {
        self.views.is_empty() && self.services.is_empty() && self.drops.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use crate::codec::{decode_snapshot, encode_snapshot};
    use crate::schema_syntax::parse_registration;

    fn definition(words: &str) -> FeatureView {
        let items: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        parse_registration(b"profile", &mut Arguments::new(&items)).expect("a definition")
    }

    #[test]
    fn the_same_definition_again_changes_nothing_and_another_is_refused() {
        let mut registry = Registry::default();
        assert_eq!(registry.register(definition("ENTITY u SCHEMA a INT")), Ok(true));
        assert_eq!(registry.register(definition("ENTITY u SCHEMA a INT")), Ok(false));
        let error = registry.register(definition("ENTITY u SCHEMA a FLOAT")).expect_err("another");
        assert_eq!(error.code, Code::ViewExists);
        assert_eq!(registry.register(definition("VERSION 2 ENTITY u SCHEMA a FLOAT")), Ok(true));
        assert_eq!(registry.version(b"profile", None).expect("newest").version, 2);
        assert_eq!(registry.version(b"profile", Some(3)).expect_err("none").code, Code::NoView);
        assert_eq!(registry.view(b"\xff").expect_err("none").code, Code::NoView);
    }

    #[test]
    fn a_name_is_busy_while_its_data_goes() {
        let mut registry = Registry::default();
        registry.register(definition("ENTITY u SCHEMA a INT")).expect("registered");
        registry.register(definition("VERSION 2 ENTITY u SCHEMA a INT")).expect("registered");
        let dropped = registry.drop_view(b"profile", Some(1), true).expect("dropped");
        assert!(!dropped.streams && dropped.versions == [1]);
        assert_eq!(registry.register(definition("ENTITY u SCHEMA a INT")).expect_err("busy").code, Code::Busy);
        assert!(registry.register(definition("VERSION 3 ENTITY u SCHEMA a INT")).is_ok());
        assert!(registry.drop_view(b"profile", None, true).expect("dropped").streams);
        assert_eq!(
            registry.register(definition("VERSION 9 ENTITY u SCHEMA a INT")).expect_err("busy").code,
            Code::Busy
        );
        registry.drops.clear();
        assert!(registry.register(definition("ENTITY u SCHEMA a INT")).is_ok());
        assert!(registry.drop_view(b"profile", Some(7), false).is_err());
    }

    #[test]
    fn a_deleted_row_is_not_brought_back_by_older_entries() {
        let mut view = View::default();
        let id = |ms| StreamId { ms, seq: 0 };
        view.bury(1, b"u1", id(5));
        assert!(view.is_buried(1, b"u1", id(5)) && !view.is_buried(1, b"u1", id(6)));
        assert!(!view.is_buried(2, b"u1", id(5)) && !view.is_buried(1, b"u2", id(5)));
        view.forget_tombstones(id(4));
        assert_eq!(view.tombstones(), 1);
        view.forget_tombstones(id(5));
        assert_eq!(view.tombstones(), 0);
    }

    #[test]
    fn a_snapshot_brings_everything_back() {
        let mut registry = Registry::default();
        registry.register(definition("ENTITY u TTL 1d SCHEMA a INT DEFAULT 5")).expect("registered");
        registry.register(definition("VERSION 2 ENTITY u SCHEMA a FLOAT")).expect("registered");
        let view = registry.view_mut(b"profile").expect("a view");
        view.stopped = true;
        view.cursor = Some(Cursor { id: StreamId { ms: 5, seq: 1 }, entries_read: Some(9) });
        view.bury(1, b"\xff", StreamId { ms: 4, seq: 0 });
        let service = Service::parse(b"s", &mut Arguments::new(&[b"FEATURES", b"1", b"profile:a"]), &registry);
        registry.set_service(service.expect("a service"));
        let bytes = encode_snapshot(&registry.to_snapshot());
        let loaded = Registry::from_snapshot(decode_snapshot(&bytes).expect("bytes")).expect("definitions");
        assert_eq!(loaded.to_snapshot(), registry.to_snapshot());
    }
}
