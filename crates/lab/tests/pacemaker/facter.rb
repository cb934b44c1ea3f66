# Facter's reader of Azure's metadata, unmodified; Facter by itself asks it on Hyper-V only.
require 'facter'
require 'json'
puts JSON.generate(Facter::Resolvers::Az.resolve(:metadata))
