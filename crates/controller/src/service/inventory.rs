//! Hosts, sets, and the fleet they make.

use std::collections::BTreeMap;

use fermata_model::{HostName, SetName};
use fermata_planner::fleet::FleetBuilder;
use fermata_planner::{Fleet, FleetSpec, HostSpec, PlacedVm, SetSpec};
use fermata_store::{Compare, Op, Txn};

use super::{Controller, ServiceError};
use crate::identity::{Identity, secret, token_key};
use crate::records::{cordon_key, decode, encode};
use crate::wire::{HostRecord, HostReport, NewToken, Secret, VmReport};

impl Controller {
    /// A token for an operator; shown once.
    ///
    /// # Errors
    /// The store's.
    pub async fn new_token(&self, new: &NewToken) -> Result<Secret, ServiceError> {
        let token = secret();
        let identity = Identity::Operator { name: new.name.clone(), role: new.role };
        self.store.put(&token_key(&token), encode(&identity)).await?;
        Ok(Secret { token })
    }

    /// All hosts.
    ///
    /// # Errors
    /// The store's.
    pub async fn hosts(&self) -> Result<BTreeMap<HostName, HostRecord>, ServiceError> {
        let cordoned = self.store.range("cordon/").await?.keys;
        let mut hosts = BTreeMap::new();
        for row in self.store.range("host/").await?.keys {
            let Some(name) = row.key.strip_prefix("host/").and_then(|name| name.parse::<HostName>().ok()) else {
                continue;
            };
            let mut record: HostRecord = decode(&row)?;
            record.cordoned = cordoned.iter().any(|row| row.key == cordon_key(&name));
            hosts.insert(name, record);
        }
        Ok(hosts)
    }

    /// Takes a host out of maintenance, or back into it.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`].
    pub async fn cordon(&self, host: &HostName, cordoned: bool) -> Result<(), ServiceError> {
        let exists = self.store.get(&format!("host/{host}")).await?.is_some();
        if !exists {
            return Err(ServiceError::NotFound { what: "host", name: host.to_string() });
        }
        let key = cordon_key(host);
        let op = if cordoned { Op::put(key, "{}") } else { Op::delete(key) };
        let _ = self.store.txn(Txn::write([op])).await?;
        self.mail.changed();
        Ok(())
    }

    /// Makes a set.
    ///
    /// # Errors
    /// [`ServiceError::Bad`] when it exists, or has more than 20 update domains.
    pub async fn new_set(&self, set: &SetSpec) -> Result<(), ServiceError> {
        let mut builder = FleetBuilder::new(0);
        builder.add_set(set.clone()).map_err(|error| ServiceError::Bad(error.to_string()))?;
        let key = format!("set/{}", set.name);
        let txn =
            Txn { compares: vec![Compare::absent(&key)], success: vec![Op::put(key, encode(set))], failure: vec![] };
        if self.store.txn(txn).await?.succeeded {
            Ok(())
        } else {
            let text = format!("availability set `{}` exists; its update domains are fixed for life", set.name);
            Err(ServiceError::Bad(text))
        }
    }

    /// All sets.
    ///
    /// # Errors
    /// The store's.
    pub async fn sets(&self) -> Result<BTreeMap<SetName, SetSpec>, ServiceError> {
        let rows = self.store.range("set/").await?.keys;
        let sets = rows.iter().map(|row| decode::<SetSpec>(row).map(|set| (set.name.clone(), set)));
        Ok(sets.collect::<Result<_, _>>()?)
    }

    /// Takes a whole fleet in: hosts, sets, VMs. Hosts that have reported themselves keep their own report.
    ///
    /// # Errors
    /// [`ServiceError::Bad`] with the first thing that does not fit.
    pub async fn import(&self, spec: FleetSpec) -> Result<Vec<String>, ServiceError> {
        let fleet = Fleet::try_from(spec.clone()).map_err(|error| ServiceError::Bad(error.to_string()))?;
        let known = self.hosts().await?;
        for set in &spec.sets {
            self.store.put(&format!("set/{}", set.name), encode(set)).await?;
        }
        for host in spec.hosts {
            if known.get(&host.name).is_some_and(|known| known.seen.is_some()) {
                continue;
            }
            let id = fleet.host_id(&host.name);
            let vms = id.into_iter().flat_map(|id| fleet.vms_on(id)).map(|vm| VmReport {
                name: vm.name.clone(),
                set: vm.member.map(|member| fleet.set(member.set).spec.name.clone()),
                update_domain: vm.member.map(|member| member.domain),
                vmm: None,
            });
            let report = HostReport {
                rack: host.rack,
                zone: host.zone,
                fault_domain: host.fault_domain,
                labels: host.labels,
                vms: vms.collect(),
                ..HostReport::default()
            };
            let record = HostRecord { report, seen: None, skew_ms: 0, cordoned: false };
            self.store.put(&format!("host/{}", host.name), encode(&record)).await?;
        }
        Ok(fleet.self_conflicts().iter().map(ToString::to_string).collect())
    }

    /// The fleet as it is known now.
    ///
    /// # Errors
    /// [`ServiceError::Bad`] when the reports of hosts do not fit together.
    pub async fn fleet(&self) -> Result<Fleet, ServiceError> {
        self.fleet_with(|_, cordoned| cordoned).await
    }

    /// The same with other cordons than are set now.
    pub(super) async fn fleet_with(
        &self,
        cordoned: impl Fn(&HostName, bool) -> bool + Send,
    ) -> Result<Fleet, ServiceError> {
        let bad = |error: fermata_planner::fleet::PieceError| ServiceError::Bad(format!("the inventory: {error}"));
        let revision = self.store.range("host/").await?.revision;
        let mut builder = FleetBuilder::new(revision.0);
        let sets = self.sets().await?;
        let counts = sets.iter().map(|(name, set)| (name.clone(), set.update_domains)).collect();
        for set in sets.into_values() {
            builder.add_set(set).map_err(bad)?;
        }
        let hosts = self.hosts().await?;
        let vms = hosts.values().flat_map(|host| &host.report.vms);
        let members = vms.filter_map(|vm| Some(((vm.set.clone()?, vm.name.clone()), vm.update_domain)));
        let given = self.domains(&members.collect(), &counts).await?;
        for (name, record) in hosts {
            let report = record.report;
            for set in report.vms.iter().filter_map(|vm| vm.set.as_ref()) {
                if !builder.has_set(set) {
                    builder.add_set(SetSpec::new(set.clone())).map_err(bad)?;
                }
            }
            let spec = HostSpec {
                rack: report.rack,
                zone: report.zone,
                fault_domain: report.fault_domain,
                labels: report.labels,
                cordoned: cordoned(&name, record.cordoned),
                ..HostSpec::new(name.clone())
            };
            builder.add_host(spec).map_err(bad)?;
            for vm in report.vms {
                let of_set = vm.set.as_ref().and_then(|set| given.get(&(set.clone(), vm.name.clone())).copied());
                let update_domain = vm.update_domain.or(of_set);
                let placed = PlacedVm { name: vm.name, host: name.clone(), set: vm.set, update_domain };
                builder.add_vm(placed).map_err(bad)?;
            }
        }
        Ok(builder.build())
    }
}
