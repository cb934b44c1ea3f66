//! The document of an api-version. A field is in it exactly when its version of introduction is not later.

use fermata_model::spec::GuestOs;
use serde_json::{Map, Value, json};

use super::{Instance, InstanceVersion, Interface};

/// Members of one object, as far as the requested version knows them.
struct Members {
    version: InstanceVersion,
    map: Map<String, Value>,
}

impl Members {
    fn new(version: InstanceVersion) -> Self {
        Self { version, map: Map::new() }
    }

    fn put(&mut self, since: &str, name: &str, value: impl Into<Value>) -> &mut Self {
        if self.version.has(since) {
            self.map.insert(name.to_owned(), value.into());
        }
        self
    }

    fn all(&mut self, since: &str, members: &[(&str, &str)]) -> &mut Self {
        for (name, value) in members {
            self.put(since, name, *value);
        }
        self
    }

    fn done(&mut self) -> Value {
        Value::Object(std::mem::take(&mut self.map))
    }
}

/// The document that VM `name` reads in `version`. `extended` adds what provisioning agents ask for.
#[must_use]
pub fn render(name: &str, instance: &Instance, version: InstanceVersion, extended: bool) -> Value {
    let interfaces: Vec<Value> = instance.interfaces.iter().map(interface).collect();
    let mut document = json!({
        "compute": compute(name, instance, version),
        "network": { "interface": interfaces },
    });
    if extended {
        document["extended"] = json!({ "compute": { "hasCustomData": false, "ppsType": "None" } });
    }
    document
}

fn bool_text(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

fn compute(name: &str, instance: &Instance, version: InstanceVersion) -> Value {
    let os = match instance.os {
        GuestOs::Linux => "Linux",
        GuestOs::Windows => "Windows",
    };
    let domain = |number: Option<u32>| number.map(|n| n.to_string()).unwrap_or_default();
    let resource_id = format!(
        "/subscriptions/{}/resourceGroups/{}/providers/{}/virtualMachines/{name}",
        instance.subscription_id, instance.resource_group, instance.provider
    );
    let tags: Vec<String> = instance.tags.iter().map(|(k, v)| format!("{k}:{v}")).collect();
    let tags_list: Vec<Value> = instance.tags.iter().map(|(k, v)| json!({ "name": k, "value": v })).collect();
    let keys: Vec<Value> =
        instance.public_keys.iter().map(|key| json!({ "keyData": key.key_data, "path": key.path })).collect();
    let mut members = Members::new(version);
    // Served to the oldest preview version too, which nobody documents and clients still ask for.
    members
        .all(
            "2017-03-01",
            &[
                ("location", &instance.location),
                ("name", name),
                ("offer", &instance.offer),
                ("osType", os),
                ("platformUpdateDomain", &domain(instance.update_domain.map(u32::from))),
                ("platformFaultDomain", &domain(instance.fault_domain.map(u32::from))),
                ("publisher", &instance.publisher),
                ("sku", &instance.sku),
                ("version", &instance.version),
                ("vmId", &instance.vm_id.to_string()),
                ("vmSize", &instance.vm_size),
            ],
        )
        .all(
            "2017-08-01",
            &[
                ("placementGroupId", &instance.placement_group),
                ("resourceGroupName", &instance.resource_group),
                ("subscriptionId", &instance.subscription_id),
                ("tags", &tags.join(";")),
            ],
        )
        .all("2017-12-01", &[("vmScaleSetName", ""), ("zone", &instance.zone)])
        .put("2018-04-02", "plan", json!({ "name": "", "product": "", "publisher": "" }))
        .put("2018-04-02", "publicKeys", keys)
        .all("2018-10-01", &[("azEnvironment", &instance.environment), ("provider", &instance.provider)])
        .all("2019-02-01", &[("customData", "")])
        .all("2019-03-11", &[("resourceId", &resource_id)])
        .put("2019-06-01", "storageProfile", storage(instance, version))
        .put("2019-06-04", "tagsList", tags_list)
        .all("2020-06-01", &[("isHostCompatibilityLayerVm", "false")])
        .put("2020-06-01", "securityProfile", security(instance, version))
        .put("2020-07-15", "osProfile", os_profile(name, instance, version))
        .all("2020-09-01", &[("licenseType", "")])
        .all("2020-12-01", &[("evictionPolicy", ""), ("priority", "")])
        .all("2021-01-01", &[("userData", &instance.user_data)])
        .put("2021-03-01", "extendedLocation", json!({ "type": "", "name": "" }))
        .put("2021-03-01", "virtualMachineScaleSet", json!({ "id": "" }))
        .all("2021-10-01", &[("platformSubFaultDomain", "")])
        .put("2021-11-01", "additionalCapabilities", json!({ "hibernationEnabled": "false" }))
        .put("2021-11-15", "host", json!({ "id": "" }))
        .put("2021-11-15", "hostGroup", json!({ "id": "" }))
        .all("2023-11-15", &[("physicalZone", &instance.physical_zone)])
        .all("2024-07-17", &[("isVmInStandbyPool", "false")])
        .done()
}

fn os_profile(name: &str, instance: &Instance, version: InstanceVersion) -> Value {
    let computer = if instance.computer_name.is_empty() { name } else { &instance.computer_name };
    let mut members = Members::new(version);
    members
        .all("2020-07-15", &[("adminUsername", &instance.admin_user), ("computerName", computer)])
        .all("2020-10-01", &[("disablePasswordAuthentication", bool_text(instance.disable_password))])
        .done()
}

fn security(instance: &Instance, version: InstanceVersion) -> Value {
    let mut members = Members::new(version);
    members
        .all(
            "2020-06-01",
            &[
                ("secureBootEnabled", bool_text(instance.secure_boot)),
                ("virtualTpmEnabled", bool_text(instance.virtual_tpm)),
            ],
        )
        .all("2021-11-01", &[("encryptionAtHost", "false")])
        .all("2021-12-13", &[("securityType", "")])
        .done()
}

fn storage(instance: &Instance, version: InstanceVersion) -> Value {
    let image = Members::new(version)
        .all(
            "2019-06-01",
            &[
                ("id", ""),
                ("offer", &instance.offer),
                ("publisher", &instance.publisher),
                ("sku", &instance.sku),
                ("version", &instance.version),
            ],
        )
        .all("2023-07-01", &[("communityGalleryImageId", ""), ("exactVersion", ""), ("sharedGalleryImageId", "")])
        .done();
    let gigabytes = |size: u64| if size == 0 { String::new() } else { size.to_string() };
    let disk = |members: &mut Members, name: &str, size_gb: u64| {
        members
            .all(
                "2019-06-01",
                &[
                    ("caching", ""),
                    ("createOption", ""),
                    ("diskSizeGB", &gigabytes(size_gb)),
                    ("name", name),
                    ("writeAcceleratorEnabled", "false"),
                ],
            )
            .put("2019-06-01", "image", json!({ "uri": "" }))
            .put("2019-06-01", "managedDisk", json!({ "id": "", "storageAccountType": "" }))
            .put("2019-06-01", "vhd", json!({ "uri": "" }));
    };
    let mut os_disk = Members::new(version);
    disk(&mut os_disk, "", instance.os_disk_gb);
    let os_type = if instance.os == GuestOs::Windows { "Windows" } else { "Linux" };
    os_disk
        .all("2019-06-01", &[("osType", os_type)])
        .put("2019-06-01", "diffDiskSettings", json!({ "option": "" }))
        .put("2019-06-01", "encryptionSettings", json!({ "enabled": "false" }));
    let data: Vec<Value> = instance
        .data_disks
        .iter()
        .map(|data| {
            let mut members = Members::new(version);
            disk(&mut members, &data.name, data.size_gb);
            members
                .all("2019-06-01", &[("lun", &data.lun.to_string())])
                .all(
                    "2021-05-01",
                    &[
                        ("bytesPerSecondThrottle", ""),
                        ("diskCapacityBytes", ""),
                        ("isSharedDisk", "false"),
                        ("isUltraDisk", "false"),
                        ("opsPerSecondThrottle", ""),
                    ],
                )
                .done()
        })
        .collect();
    Members::new(version)
        .put("2019-06-01", "dataDisks", data)
        .put("2019-06-01", "imageReference", image)
        .put("2019-06-01", "osDisk", os_disk.done())
        .put("2021-02-01", "resourceDisk", json!({ "size": "" }))
        .done()
}

fn interface(interface: &Interface) -> Value {
    let address = |a: &super::Address| {
        json!({
            "privateIpAddress": a.private.to_string(),
            "publicIpAddress": a.public.map(|p| p.to_string()).unwrap_or_default(),
        })
    };
    let subnet = |s: &super::Subnet| json!({ "address": s.address.to_string(), "prefix": s.prefix.to_string() });
    let v6 = |a: &std::net::Ipv6Addr| json!({ "privateIpAddress": a.to_string() });
    json!({
        "ipv4": {
            "ipAddress": interface.ipv4.iter().map(address).collect::<Vec<_>>(),
            "subnet": interface.subnets.iter().map(subnet).collect::<Vec<_>>(),
        },
        "ipv6": { "ipAddress": interface.ipv6.iter().map(v6).collect::<Vec<_>>() },
        "macAddress": interface.mac.to_string().replace(':', "").to_uppercase(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(value: &Value) -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn rule_25_every_primitive_is_a_string_and_nothing_is_null() {
        fn check(value: &Value) {
            match value {
                Value::Object(members) => members.values().for_each(check),
                Value::Array(elements) => elements.iter().for_each(check),
                Value::String(_) => {}
                other => panic!("{other}"),
            }
        }
        let instance = Instance { data_disks: vec![Default::default()], ..Instance::default() };
        for version in InstanceVersion::all() {
            check(&render("a", &instance, version, false));
        }
    }

    #[test]
    fn fields_appear_with_their_version_and_stay() {
        let mut before: Vec<String> = Vec::new();
        let expected = [
            ("2017-03-01", 11),
            ("2017-08-01", 15),
            ("2017-12-01", 17),
            ("2018-04-02", 19),
            ("2018-10-01", 21),
            ("2019-02-01", 22),
            ("2019-03-11", 23),
            ("2019-06-01", 24),
            ("2019-06-04", 25),
            ("2020-06-01", 27),
            ("2020-07-15", 28),
            ("2020-09-01", 29),
            ("2020-12-01", 31),
            ("2021-01-01", 32),
            ("2021-03-01", 34),
            ("2021-10-01", 35),
            ("2021-11-01", 36),
            ("2021-11-15", 38),
            ("2023-11-15", 39),
            ("2024-07-17", 40),
        ];
        for version in InstanceVersion::all() {
            let fields = names(&render("a", &Instance::default(), version, false)["compute"]);
            let count = expected.iter().rev().find(|(since, _)| *since <= version.as_str()).unwrap().1;
            assert_eq!(fields.len(), count, "{}: {fields:?}", version.as_str());
            assert!(before.iter().all(|field| fields.contains(field)));
            before = fields;
        }
    }

    #[test]
    fn interfaces_have_a_mac_without_colons() {
        let mut interface = Interface::new("00:0d:3a:48:fa:8d".parse().unwrap());
        interface.ipv4.push(super::super::Address { private: [10, 0, 0, 4].into(), public: None });
        let instance = Instance { interfaces: vec![interface], ..Instance::default() };
        let document = render("a", &instance, InstanceVersion::newest(), false);
        let shown = &document["network"]["interface"][0];
        assert_eq!(shown["macAddress"], "000D3A48FA8D");
        assert_eq!(shown["ipv4"]["ipAddress"][0]["publicIpAddress"], "");
        assert_eq!(shown["ipv6"]["ipAddress"], json!([]));
    }
}
