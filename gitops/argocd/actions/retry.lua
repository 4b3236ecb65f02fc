-- Each stage that has failed gets a fresh budget, and goes on from its newest checkpoint. The value
-- names the attempt that failed, so that a later failure is not covered.
local function retry(name, stage)
  if stage ~= nil and stage.phase == "Failed" then
    obj.metadata.annotations = obj.metadata.annotations or {}
    obj.metadata.annotations["rlhf.dev/retry-" .. name] = tostring(stage.attempt)
  end
end

retry("prepare", obj.status.prepare)
for name, stage in pairs(obj.status.stages or {}) do
  retry(name, stage)
end
return obj
