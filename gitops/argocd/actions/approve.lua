-- Approves the results that a gate waits with: each by its hash, so that a later result waits again.
local function is_in_range(gate, metrics)
  if gate.metric == nil then
    return true
  end
  local value = metrics[gate.metric]
  return value ~= nil
    and (gate.min == nil or value >= gate.min)
    and (gate.max == nil or value <= gate.max)
end

for name, stage in pairs(obj.spec.stages) do
  local result = (obj.status.stages or {})[name]
  local gate = stage.gate
  if gate ~= nil and gate.approval and result ~= nil and result.phase == "Succeeded" then
    if is_in_range(gate, result.metrics or {}) then
      obj.metadata.annotations = obj.metadata.annotations or {}
      obj.metadata.annotations["rlhf.dev/approve-" .. name] = result.hash
    end
  end
end
return obj
